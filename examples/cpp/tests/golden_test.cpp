// Compares the library with a golden folder, which `detr-export onnx --golden` wrote from the checkpoint:
//     golden_test FOLDER MODEL.onnx [THRESHOLD]
// Objects are compared as pairs of the same label, because objects with nearly equal scores may swap places. Each expected
// object must be found, and each found one expected. It prints the largest differences of each case.
#include <atomic>
#include <cmath>
#include <fstream>
#include <sstream>
#include <thread>

#include "check.hpp"

using nlohmann::json;

namespace {

struct Object {
    std::int64_t label;
    float score;
    std::array<float, 4> box;
    std::vector<float> mask;  // empty if there is none
};

struct Tolerances {
    float score, box, mask;
};

struct Differences {
    float score = 0, box = 0, mask = 0;
    std::size_t pairs = 0;
};

struct Case {
    std::string name;
    std::vector<std::uint8_t> pixels;
    std::vector<std::size_t> shape;             // (batch, height, width, 3)
    std::vector<std::vector<Object>> expected;  // all queries, by image
};

// An array of a case. Its size must be what its shape says.
template <typename T>
std::vector<T> read_array(const std::string& folder, const json& item, const char* dtype) {
    const auto path = folder + '/' + item.at("file").get<std::string>();
    std::ifstream file(path, std::ios::binary);
    std::ostringstream content;
    content << file.rdbuf();
    const std::string bytes = content.str();
    std::size_t elements = 1;
    for (const auto size : item.at("shape").get<std::vector<std::size_t>>()) elements *= size;
    if (!file || item.at("dtype") != dtype || bytes.size() != elements * sizeof(T))
        throw std::runtime_error(path + " is not what index.json says");
    std::vector<T> values(elements);
    std::memcpy(values.data(), bytes.data(), bytes.size());
    return values;
}

Case read_case(const std::string& folder, const json& item) {
    const json& image = item.at("inputs").at("image");
    const json& outputs = item.at("outputs");
    Case read{item.at("name"), read_array<std::uint8_t>(folder, image, "uint8"), image.at("shape"), {}};
    const auto scores = read_array<float>(folder, outputs.at("scores"), "float32");
    const auto labels = read_array<std::int64_t>(folder, outputs.at("labels"), "int64");
    const auto boxes = read_array<float>(folder, outputs.at("boxes"), "float32");
    const auto masks =
        outputs.contains("masks") ? read_array<float>(folder, outputs.at("masks"), "float32") : std::vector<float>{};
    if (read.shape.size() != 4 || read.shape[0] == 0 || scores.empty() || labels.size() != scores.size() ||
        boxes.size() != 4 * scores.size())
        throw std::runtime_error(read.name + ": the arrays do not fit each other");
    const std::size_t cells = masks.size() / scores.size(), queries = scores.size() / read.shape[0];
    read.expected.resize(read.shape[0]);
    for (std::size_t index = 0; index < scores.size(); ++index) {
        const auto* mask = masks.data() + index * cells;
        read.expected[index / queries].push_back(
            {labels[index],
             scores[index],
             {boxes[4 * index], boxes[4 * index + 1], boxes[4 * index + 2], boxes[4 * index + 3]},
             {mask, mask + cells}});
    }
    return read;
}

std::vector<std::vector<Object>> detect(const detr::Model& model, const Case& item, float threshold) {
    const int height = static_cast<int>(item.shape[1]), width = static_cast<int>(item.shape[2]);
    std::vector<detr::ImageView> views;
    for (std::size_t index = 0; index < item.shape[0]; ++index)
        views.push_back(
            {item.pixels.data() + index * item.pixels.size() / item.shape[0], height, width, 3, 0, model.metadata().color});
    std::vector<std::vector<Object>> found;
    for (const auto& objects : model.detect(views, threshold)) {
        found.emplace_back();
        for (const detr::Detection& object : objects)
            found.back().push_back({object.label,
                                    object.score,
                                    {object.box.x_min, object.box.y_min, object.box.x_max, object.box.y_max},
                                    object.mask ? object.mask->cells : std::vector<float>{}});
    }
    return found;
}

template <typename Values>
float largest_difference(const Values& one, const Values& other) {
    if (one.size() != other.size()) return INFINITY;
    float largest = 0;
    for (std::size_t index = 0; index < one.size(); ++index) {
        const float difference = std::fabs(one[index] - other[index]);
        if (!(difference <= largest)) largest = difference;  // NaN stays
    }
    return largest;
}

// Looks for each object of `these` whose score is clearly above the threshold among `those`, where each serves once.
void match(const std::string& what, const std::vector<Object>& these, const std::vector<Object>& those, float threshold,
           const Tolerances& tolerances, Differences& differences) {
    std::vector<bool> used(those.size(), false);
    for (const Object& object : these) {
        if (!(object.score > threshold + tolerances.score)) continue;
        std::size_t nearest = those.size();
        float distance = INFINITY;
        for (std::size_t index = 0; index < those.size(); ++index) {
            const float box = largest_difference(object.box, those[index].box);
            if (!used[index] && those[index].label == object.label && those[index].score > threshold &&
                std::fabs(those[index].score - object.score) <= tolerances.score && box <= tolerances.box &&
                box < distance) {
                nearest = index;
                distance = box;
            }
        }
        std::ostringstream text;
        text << what << ": no partner for label " << object.label << ", score " << object.score << ", box " << object.box[0]
             << ' ' << object.box[1] << ' ' << object.box[2] << ' ' << object.box[3];
        check::that(nearest < those.size(), text.str(), __FILE__, __LINE__);
        if (nearest == those.size()) continue;
        used[nearest] = true;
        const Object& partner = those[nearest];
        const float mask = std::isinf(tolerances.mask) ? 0 : largest_difference(object.mask, partner.mask);
        check::that(mask <= tolerances.mask, what + ": a mask differs by " + std::to_string(mask), __FILE__, __LINE__);
        differences.score = std::max(differences.score, std::fabs(object.score - partner.score));
        differences.box = std::max(differences.box, distance);
        differences.mask = std::max(differences.mask, mask);
        ++differences.pairs;
    }
}

}  // namespace

int main(int argc, char** argv) try {
    const std::string folder = argv[1];
    const float threshold = argc > 3 ? std::stof(argv[3]) : 0.5F;
    const json index = json::parse(std::ifstream(folder + "/index.json"));
    if (index.at("format_version") != 1 || index.at("kind") != "end-to-end")
        throw std::runtime_error(folder + " is not the golden folder of an end-to-end file, in format 1");
    const json& limits = index.at("tolerances");
    // Masks are compared where the folder has a tolerance for them.
    const Tolerances tolerances{limits.at("scores"), limits.at("boxes"), limits.value("masks", INFINITY)};
    const detr::Model model(argv[2]);

    std::vector<Case> cases;
    std::vector<std::vector<std::vector<Object>>> answers;
    std::size_t pairs = 0;
    for (const json& item : index.at("cases")) {
        cases.push_back(read_case(folder, item));
        const Case& one = cases.back();
        answers.push_back(detect(model, one, threshold));
        Differences differences;
        CHECK(answers.back().size() == one.expected.size());
        for (std::size_t image = 0; image < one.expected.size(); ++image) {
            match(one.name + ", expected", one.expected[image], answers.back()[image], threshold, tolerances, differences);
            match(one.name + ", found", answers.back()[image], one.expected[image], threshold, tolerances, differences);
        }
        pairs += differences.pairs;
        std::cout << one.name << ": " << differences.pairs << " pairs both ways; largest difference of scores "
                  << differences.score << ", boxes " << differences.box << ", masks ";
        std::isinf(tolerances.mask) ? std::cout << "not compared\n" : std::cout << differences.mask << '\n';
    }
    check::that(pairs > 0, "no object is above the threshold, so nothing was compared", __FILE__, __LINE__);

    // Four threads share the model and get the same answers.
    std::vector<std::thread> threads;
    std::atomic<std::size_t> same{0};
    for (int number = 0; number < 4; ++number)
        threads.emplace_back([&] {
            for (std::size_t at = 0; at < cases.size(); ++at) {
                const auto again = detect(model, cases[at], threshold);
                bool equal = again.size() == answers[at].size();
                for (std::size_t image = 0; equal && image < again.size(); ++image) {
                    equal = again[image].size() == answers[at][image].size();
                    for (std::size_t k = 0; equal && k < again[image].size(); ++k) {
                        const Object &one = again[image][k], &other = answers[at][image][k];
                        equal = one.label == other.label && std::fabs(one.score - other.score) <= 1e-5F &&
                                largest_difference(one.box, other.box) <= 1e-2F;
                    }
                }
                same += equal ? 1 : 0;
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(same == 4 * cases.size());
    return check::finish();
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
