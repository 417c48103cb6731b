// Runs a TensorRT engine of an end-to-end file (`detr-export trt model.onnx -o model.engine`), with the same calls and
// results as detr.hpp. It needs detr.hpp beside it, TensorRT 10 or later, the CUDA runtime and nlohmann-json, but not ONNX
// Runtime.
//
//     detr::TensorRTModel model("model.engine");      // reads model.engine.json, too
//     for (const detr::Detection& found : model.detect({pixels, height, width}, 0.7F)) ...
//
// This header was compiled and run against a double of TensorRT and CUDA, never on a GPU.
//
// Threads: one object may be used by many threads; their calls take turns. For calls at the same time, open more objects.
// It can be moved, but not while it is used.
#ifndef DETR_TENSORRT_HPP
#define DETR_TENSORRT_HPP

#ifndef DETR_WITHOUT_ONNXRUNTIME
#define DETR_WITHOUT_ONNXRUNTIME
#include "detr.hpp"
#undef DETR_WITHOUT_ONNXRUNTIME
#else
#include "detr.hpp"
#endif

#include <cmath>
#include <deque>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <type_traits>

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#if NV_TENSORRT_MAJOR < 10
#error "detr_tensorrt.hpp needs TensorRT 10 or later"
#endif

namespace detr {
namespace detail {

constexpr int newest_sidecar = 2;  // format of the document beside an engine

// Keeps TensorRT's last errors: they say why a call gave nothing. There is one for the process, because TensorRT keeps the
// first that it gets. So an error may also come from another model that works at the same time.
class Logger : public nvinfer1::ILogger {
 public:
    static Logger& instance() {
        static auto* const logger = new Logger;  // it must outlive every model, also static ones
        return *logger;
    }

    void log(Severity severity, const char* message) noexcept override {
        if (severity > Severity::kERROR) return;
        try {
            const std::lock_guard<std::mutex> lock(mutex_);
            errors_.emplace_back(message);
            if (errors_.size() > 3) errors_.pop_front();
        } catch (...) {  // no memory for the text: TensorRT must not see an exception
        }
    }

    void clear() {
        const std::lock_guard<std::mutex> lock(mutex_);
        errors_.clear();
    }

    // The errors since `clear`.
    std::string reason() {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::string all;
        for (const std::string& error : errors_) all += (all.empty() ? "" : "; ") + error;
        return all.empty() ? "TensorRT gave no reason" : all;
    }

 private:
    std::mutex mutex_;
    std::deque<std::string> errors_;
};

inline void cuda(cudaError_t status, const char* what) {
    if (status != cudaSuccess)
        fail(runtime_error, what, " failed: ", cudaGetErrorString(status), "; check the GPU and its driver with nvidia-smi");
}

// The model's GPU as the thread's current one, and afterwards the one that was current before.
class DeviceScope {
 public:
    explicit DeviceScope(int device) {
        cuda(cudaGetDevice(&before_), "cudaGetDevice");
        cuda(cudaSetDevice(device), "cudaSetDevice");
    }
    ~DeviceScope() { cudaSetDevice(before_); }
    DeviceScope(const DeviceScope&) = delete;
    DeviceScope& operator=(const DeviceScope&) = delete;

 private:
    int before_ = 0;
};

// Memory on the GPU that grows.
class Buffer {
 public:
    Buffer() = default;
    ~Buffer() { cudaFree(address_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* reserve(std::size_t bytes) {  // nothing may use the old memory
        if (bytes > bytes_) {
            cudaFree(std::exchange(address_, nullptr));
            bytes_ = 0;
            cuda(cudaMalloc(&address_, bytes), "cudaMalloc");
            bytes_ = bytes;
        }
        return address_;
    }

 private:
    void* address_ = nullptr;
    std::size_t bytes_ = 0;
};

// SHA-256 as hexadecimal digits (FIPS 180-4). The sidecar names its engine by it.
inline std::string sha256(const std::string& data) {
    // The constants are the first 32 bits of the fractional parts of the square and cube roots of the first primes.
    std::array<std::uint32_t, 8> state{};
    std::array<std::uint32_t, 64> constants{};
    const auto fraction = [](long double root) {
        return static_cast<std::uint32_t>((root - static_cast<long double>(static_cast<int>(root))) * 4294967296.0L);
    };
    for (int prime = 2, found = 0; found < 64; ++prime) {
        bool divisible = false;
        for (int divisor = 2; divisor * divisor <= prime; ++divisor) divisible = divisible || prime % divisor == 0;
        if (divisible) continue;
        if (found < 8) state[static_cast<std::size_t>(found)] = fraction(std::sqrt(static_cast<long double>(prime)));
        constants[static_cast<std::size_t>(found++)] = fraction(std::cbrt(static_cast<long double>(prime)));
    }

    // The message: the data, one bit, zeros, and the number of bits
    std::string tail(data, data.size() / 64 * 64);
    tail += '\x80';
    while (tail.size() % 64 != 56) tail += '\0';
    for (int shift = 56; shift >= 0; shift -= 8) tail += static_cast<char>(std::uint64_t{data.size()} * 8 >> shift);

    const auto turn = [](std::uint32_t value, int by) { return value >> by | value << (32 - by); };
    const auto add_block = [&](const char* block) {
        std::array<std::uint32_t, 64> words{};
        for (std::size_t i = 0; i < 64; ++i) words[i / 4] = words[i / 4] << 8 | static_cast<unsigned char>(block[i]);
        for (std::size_t i = 16; i < 64; ++i) {
            const std::uint32_t a = words[i - 15], b = words[i - 2];
            words[i] =
                words[i - 16] + (turn(a, 7) ^ turn(a, 18) ^ a >> 3) + words[i - 7] + (turn(b, 17) ^ turn(b, 19) ^ b >> 10);
        }
        auto [a, b, c, d, e, f, g, h] = state;
        for (std::size_t i = 0; i < 64; ++i) {
            const std::uint32_t one =
                h + (turn(e, 6) ^ turn(e, 11) ^ turn(e, 25)) + ((e & f) ^ (~e & g)) + constants[i] + words[i];
            const std::uint32_t two = (turn(a, 2) ^ turn(a, 13) ^ turn(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + one, d = c, c = b, b = a, a = one + two;
        }
        const std::array<std::uint32_t, 8> mixed{a, b, c, d, e, f, g, h};
        for (std::size_t i = 0; i < 8; ++i) state[i] += mixed[i];
    };
    for (std::size_t start = 0; start + 64 <= data.size(); start += 64) add_block(data.data() + start);
    for (std::size_t start = 0; start < tail.size(); start += 64) add_block(tail.data() + start);

    std::string digits;
    for (const std::uint32_t word : state)
        for (int shift = 28; shift >= 0; shift -= 4) digits += "0123456789abcdef"[word >> shift & 15];
    return digits;
}

inline std::string read_file(const std::filesystem::path& path) {
    require_file(path);
    std::ifstream file(path, std::ios::binary);
    std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
    if (file.bad() || !file.is_open()) fail(file_error, name_of(path), " cannot be read; check its permissions");
    return content;
}

using Version = std::array<int, 3>;  // major, minor, patch

inline Version version_of(const std::string& text) {
    Version version{};
    std::size_t position = 0;
    for (int& number : version) {
        std::size_t used = 0;
        number = std::stoi(text.substr(position), &used);
        position = std::min(position + used + 1, text.size());
    }
    return version;
}

// Whether an engine runs on this version. Only version-compatible ones run on a later TensorRT than built them. Source: the
// support matrix of TensorRT 11.4, "Engine Portability".
inline bool runs_on(const Version& built, const Version& here, bool version_compatible) {
    if (!version_compatible) return built == here;
    return Version{8, 6, 0} <= built && built <= here && (built[0] == here[0] || (built[0] == 10 && here[0] == 11));
}

// Refuses an engine that this machine cannot run, before its code is loaded. Returns its metadata and whether it brings code
// for the CPU.
inline std::pair<Metadata, bool> admit(const std::string& file, const std::string& plan, const std::string& sidecar,
                                       int device) {
    const std::string again = "build it again: detr-export trt MODEL.onnx -o " + file;
    try {
        const auto document = nlohmann::json::parse(sidecar);
        const auto format = document.at("format_version").get<int>();
        if (format > newest_sidecar)
            fail(file_error, file, ".json has format ", format, ", and this header reads ", newest_sidecar,
                 "; take the header of the detr-export that built the engine");
        if (format < newest_sidecar) fail(file_error, file, ".json has the old format ", format, "; ", again);
        if (document.at("library").get<std::string>() != "tensorrt")
            fail(file_error, file, " is for TensorRT-RTX, and this program uses TensorRT; leave out --rtx and ", again);
        if (document.at("sha256").get<std::string>() != sha256(plan))  // an engine is executable code
            fail(file_error, file, " is not the engine that its .json describes (its SHA-256 differs); copy both again");

        const auto built = document.at("library_version").get<std::string>();
        const bool compatible = document.at("version_compatible").get<bool>();
        const int number = getInferLibVersion();
        const Version here{number / 10000, number / 100 % 100, number % 100};
        if (!runs_on(version_of(built), here, compatible))
            fail(file_error, file, " was built with TensorRT ", built, ", and this is ", here[0], '.', here[1], '.', here[2],
                 "; install ", built, ", or here, ", again);

        int major = 0, minor = 0;
        cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
        cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
        bool fits = document.at("hardware_compatible").get<bool>() && major >= 8;
        for (const auto& target : document.at("targets"))
            fits = fits || (target.at(0).get<int>() == major && target.at(1).get<int>() == minor);
        if (!fits)
            fail(file_error, file, " was built for another kind of GPU; this one has compute capability ", major, '.', minor,
                 "; here, ", again, ", or there with --hardware-compatible");
        return {read_metadata(file, document.at("metadata")), compatible};
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {  // of the JSON library, or a version that is no number
        fail(file_error, file, ".json is damaged (", first_line(error.what()), "); ", again);
    }
}

}  // namespace detail

class TensorRTModel {
 public:
    // Opens an engine and the document beside it, ENGINE.json, on a GPU, counted from 0.
    explicit TensorRTModel(const std::filesystem::path& path, int device = 0) {
        const std::string file = detail::name_of(path);
        const std::string plan = detail::read_file(path);
        std::filesystem::path beside = path;
        if (beside += ".json"; !std::filesystem::is_regular_file(beside))
            detail::fail(detail::file_error, file, ".json is missing, and says what the engine is; ",
                         "copy it together with the engine");
        const std::string sidecar = detail::read_file(beside);
        const detail::DeviceScope scope(device);
        auto [metadata, host_code] = detail::admit(file, plan, sidecar, device);
        state_ = std::make_unique<State>(device, std::move(metadata));
        state_->load(file, plan, host_code);
    }

    // The objects in one image whose score is above the threshold, best first.
    std::vector<Detection> detect(const ImageView& image, float threshold = 0.5F) const {
        return std::move(run(&image, 1, threshold).front());
    }

    // The same for several images of one size, in one run.
    std::vector<std::vector<Detection>> detect(const std::vector<ImageView>& images, float threshold = 0.5F) const {
        return run(images.data(), images.size(), threshold);
    }

    const Metadata& metadata() const noexcept { return state_->metadata; }
    bool has_masks() const noexcept { return state_->has_masks; }

 private:
    using Size = std::vector<std::int64_t>;
    struct Profile {
        Size smallest, best, largest;  // (batch, height, width, 3)
    };
    struct StreamDeleter {
        void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
    };

    struct State {
        State(int number, Metadata read) : device(number), metadata(std::move(read)) {}
        ~State() {  // with the model's GPU as the current one, and the context before the engine before the runtime
            int before = 0;
            cudaGetDevice(&before);
            cudaSetDevice(device);
            buffers.clear();
            stream.reset();
            context.reset();
            engine.reset();
            runtime.reset();
            cudaSetDevice(before);
        }
        State(const State&) = delete;
        State& operator=(const State&) = delete;

        void load(const std::string& file, const std::string& plan, bool host_code);
        std::size_t choose(const Size& size) const;
        std::vector<std::vector<Detection>> run(const ImageView* images, std::size_t count, float threshold);
        template <typename T>
        std::vector<T> queue_download(const char* name, const Size& shape);

        const int device;
        const Metadata metadata;
        bool has_masks = false;
        bool narrow_labels = false;  // int32 instead of int64
        std::vector<Profile> profiles;
        std::unique_ptr<nvinfer1::IRuntime> runtime;
        std::unique_ptr<nvinfer1::ICudaEngine> engine;
        std::unique_ptr<nvinfer1::IExecutionContext> context;
        std::unique_ptr<std::remove_pointer_t<cudaStream_t>, StreamDeleter> stream;
        std::map<std::string, detail::Buffer> buffers;  // by tensor
        std::mutex mutex;                               // an execution context serves one call at a time
    };

    static Size size_of(const nvinfer1::Dims& dims) { return {dims.d, dims.d + std::max(dims.nbDims, 0)}; }

    static std::string text(const Size& size) {
        std::string result;
        for (std::size_t index = 0; index < std::min<std::size_t>(size.size(), 3); ++index)  // without the channels
            result += (index == 0 ? "" : "x") + std::to_string(size[index]);
        return result;
    }

    static std::size_t elements(const Size& shape) {
        std::size_t product = 1;
        for (const std::int64_t size : shape) product *= static_cast<std::size_t>(size);
        return product;
    }

    std::vector<std::vector<Detection>> run(const ImageView* images, std::size_t count, float threshold) const {
        if (!state_) detail::fail(detail::input_error, "the model was moved to another object; use that one");
        detail::check_images(state_->metadata, images, count, threshold);
        const std::lock_guard<std::mutex> lock(state_->mutex);
        const detail::DeviceScope scope(state_->device);
        return state_->run(images, count, threshold);
    }

    std::unique_ptr<State> state_;
};

inline void TensorRTModel::State::load(const std::string& file, const std::string& plan, bool host_code) {
    auto& logger = detail::Logger::instance();
    logger.clear();

    // The engine
    runtime.reset(nvinfer1::createInferRuntime(logger));
    if (!runtime)
        detail::fail(detail::runtime_error, "TensorRT does not start (", logger.reason(), "); check that its library is ",
                     NV_TENSORRT_MAJOR, " as its header, and the GPU's driver with nvidia-smi");
    if (host_code) runtime->setEngineHostCodeAllowed(true);
    engine.reset(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine)
        detail::fail(detail::file_error, file, " is refused by TensorRT (", logger.reason(),
                     "); build it again on this machine");
    context.reset(engine->createExecutionContext());
    if (!context)
        detail::fail(detail::runtime_error, "TensorRT gives no execution context (", logger.reason(),
                     "); free memory of the GPU");
    cudaStream_t made = nullptr;
    detail::cuda(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    stream.reset(made);

    // Its inputs and outputs
    std::map<std::string, nvinfer1::DataType> types;
    int inputs = 0;
    for (std::int32_t index = 0; index < engine->getNbIOTensors(); ++index) {
        const char* const name = engine->getIOTensorName(index);
        types[name] = engine->getTensorDataType(name);
        inputs += engine->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT ? 1 : 0;
    }
    const auto is = [&types](const char* name, nvinfer1::DataType type) {
        const auto found = types.find(name);
        return found != types.end() && found->second == type;
    };
    has_masks = types.count("masks") == 1;
    narrow_labels = is("labels", nvinfer1::DataType::kINT32);
    if (inputs != 1 || !is("image", nvinfer1::DataType::kUINT8) || !is("scores", nvinfer1::DataType::kFLOAT) ||
        !(narrow_labels || is("labels", nvinfer1::DataType::kINT64)) || !is("boxes", nvinfer1::DataType::kFLOAT) ||
        (has_masks && !is("masks", nvinfer1::DataType::kFLOAT)))
        detail::fail(detail::file_error, file, " has other inputs or outputs than its .json says; ",
                     "build it again from a file of detr-export onnx --end-to-end");

    // The sizes that it was built for
    using Select = nvinfer1::OptProfileSelector;
    for (std::int32_t index = 0; index < engine->getNbOptimizationProfiles(); ++index)
        profiles.push_back({size_of(engine->getProfileShape("image", index, Select::kMIN)),
                            size_of(engine->getProfileShape("image", index, Select::kOPT)),
                            size_of(engine->getProfileShape("image", index, Select::kMAX))});
}

// The number of the tightest profile that takes this size. It is tuned best.
inline std::size_t TensorRTModel::State::choose(const Size& size) const {
    std::size_t chosen = profiles.size();
    std::string taken;
    const auto distance = [&size](const Profile& profile) {
        const auto best = static_cast<std::int64_t>(elements(profile.best)),
                   wanted = static_cast<std::int64_t>(elements(size));
        return std::pair(elements(profile.largest), best > wanted ? best - wanted : wanted - best);
    };
    for (std::size_t index = 0; index < profiles.size(); ++index) {
        const Profile& profile = profiles[index];
        taken += (index == 0 ? "" : ", ") + text(profile.smallest) + " to " + text(profile.largest);
        bool fits = profile.smallest.size() == 4 && profile.largest.size() == 4;
        for (std::size_t axis = 0; fits && axis < 4; ++axis)
            fits = profile.smallest[axis] <= size[axis] && size[axis] <= profile.largest[axis];
        if (fits && (chosen == profiles.size() || distance(profile) < distance(profiles[chosen]))) chosen = index;
    }
    if (chosen == profiles.size())
        detail::fail(detail::input_error, "the engine was not built for ", text(size),
                     " (batch x height x width); it takes ", taken,
                     "; resize the image, or build it again with --profile MIN:OPT:MAX");
    return chosen;
}

// Memory for an output, which is filled when the stream is done.
template <typename T>
std::vector<T> TensorRTModel::State::queue_download(const char* name, const Size& shape) {
    std::vector<T> values(elements(shape));
    detail::cuda(cudaMemcpyAsync(values.data(), buffers[name].reserve(0), values.size() * sizeof(T), cudaMemcpyDeviceToHost,
                                 stream.get()),
                 "cudaMemcpyAsync");
    return values;
}

inline std::vector<std::vector<Detection>> TensorRTModel::State::run(const ImageView* images, std::size_t count,
                                                                     float threshold) {
    auto& logger = detail::Logger::instance();
    logger.clear();
    const auto require = [&logger](bool done, const char* step) {
        if (!done)
            detail::fail(detail::runtime_error, "TensorRT failed to ", step, ": ", logger.reason(),
                         "; run detr-export verify ENGINE on this machine");
    };
    const std::size_t image_bytes = images[0].bytes(), row_bytes = images[0].row_bytes();
    const auto batch = static_cast<std::int64_t>(count);

    // Memory that the copies below use. They must be done before it goes, also if a later step fails.
    std::vector<float> scores, boxes, masks;
    std::vector<std::int64_t> labels;
    std::vector<std::int32_t> narrow;
    struct Wait {
        cudaStream_t stream;
        ~Wait() { cudaStreamSynchronize(stream); }
    } const wait{stream.get()};

    // Sizes
    const std::size_t profile = choose({batch, images[0].height, images[0].width, 3});
    require(context->setOptimizationProfileAsync(static_cast<std::int32_t>(profile), stream.get()), "change its profile");
    require(context->setInputShape("image", nvinfer1::Dims{4, {batch, images->height, images->width, 3}}), "take the size");
    const auto shape_of = [this](const char* name) { return size_of(context->getTensorShape(name)); };
    const detail::Shapes shapes{shape_of("scores"), shape_of("labels"), shape_of("boxes"),
                                has_masks ? shape_of("masks") : Size{}};
    detail::check_shapes(shapes, batch);

    // Inputs, without the padding of rows
    auto* const input = static_cast<std::uint8_t*>(buffers["image"].reserve(count * image_bytes));
    for (std::size_t index = 0; index < count; ++index)
        detail::cuda(
            cudaMemcpy2DAsync(input + index * image_bytes, row_bytes, images[index].data, images[index].stride(), row_bytes,
                              static_cast<std::size_t>(images[index].height), cudaMemcpyHostToDevice, stream.get()),
            "cudaMemcpy2DAsync");

    // The run
    const auto bind = [&](const char* name, const Size& shape, std::size_t size) {
        require(context->setTensorAddress(name, buffers[name].reserve(elements(shape) * size)),
                "take the memory of an output");
    };
    require(context->setTensorAddress("image", input), "take the memory of the image");
    bind("scores", shapes.scores, sizeof(float));
    bind("labels", shapes.labels, narrow_labels ? sizeof(std::int32_t) : sizeof(std::int64_t));
    bind("boxes", shapes.boxes, sizeof(float));
    if (has_masks) bind("masks", shapes.masks, sizeof(float));
    require(context->enqueueV3(stream.get()), "run the engine");

    // Outputs
    scores = queue_download<float>("scores", shapes.scores);
    boxes = queue_download<float>("boxes", shapes.boxes);
    if (has_masks) masks = queue_download<float>("masks", shapes.masks);
    if (narrow_labels)
        narrow = queue_download<std::int32_t>("labels", shapes.labels);
    else
        labels = queue_download<std::int64_t>("labels", shapes.labels);
    detail::cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
    if (narrow_labels) labels.assign(narrow.begin(), narrow.end());
    return detail::read_outputs(metadata, {scores.data(), labels.data(), boxes.data(), has_masks ? masks.data() : nullptr},
                                shapes, threshold);
}

}  // namespace detr

#endif  // DETR_TENSORRT_HPP
