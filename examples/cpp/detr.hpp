// Runs an ONNX file that `detr-export onnx --end-to-end` wrote: an image goes in, objects come out. One header, C++17.
// It needs ONNX Runtime and nlohmann-json. It is tested with the headers of ONNX Runtime 1.21 and a later library.
//
//     detr::Model model("detr.onnx");
//     for (const detr::Detection& found : model.detect({pixels, height, width}, 0.7F))
//         std::cout << found.name << ' ' << found.score << ' ' << found.box.x_min << '\n';
//
// Threads: one object may be used by many threads at the same time. It can be moved, but not while it is used.
// Errors: every function that can fail throws detr::Error. Its text says what was wrong and what mends it.

// The first part is what all runtimes share. detr_tensorrt.hpp includes it alone, without ONNX Runtime.
#ifndef DETR_SHARED_PART
#define DETR_SHARED_PART

#include <algorithm>
#include <array>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <locale>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace detr {

class Error : public std::runtime_error {
 public:
    enum class Kind {
        file,     // the model's file is missing, damaged, or of the wrong kind
        input,    // an image or an argument is wrong
        runtime,  // the library that runs the model is too old, or failed
    };
    Error(Kind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
    Kind kind() const noexcept { return kind_; }

 private:
    Kind kind_;
};

enum class Color { rgb, bgr };  // the order of a pixel's three bytes

// An image in the caller's memory, which must not change during `detect`. Its rows may be padded: then `detect` copies it.
struct ImageView {
    const std::uint8_t* data = nullptr;  // the first byte of the first row
    int height = 0, width = 0;           // pixels
    int channels = 3;                    // bytes of a pixel
    std::size_t row_stride = 0;          // bytes from one row to the next; 0: no padding
    Color color = Color::rgb;

    std::size_t row_bytes() const { return static_cast<std::size_t>(width) * static_cast<std::size_t>(channels); }
    std::size_t bytes() const { return static_cast<std::size_t>(height) * row_bytes(); }  // without the padding
    std::size_t stride() const { return row_stride == 0 ? row_bytes() : row_stride; }
    bool is_packed() const { return stride() == row_bytes() || height == 1; }  // no padding, so no copy
};

struct Box {
    float x_min, y_min, x_max, y_max;  // pixels of the image that came in; a box may reach over its edges
};

struct Mask {
    int height, width;         // cells; the grid covers the whole image
    std::vector<float> cells;  // height * width, row by row: above 0 the cell belongs to the object (before the sigmoid)
};

struct Detection {
    std::int64_t label;
    std::string name;  // of the label; its number if the file has no name for it
    float score;       // from 0 to 1
    Box box;
    std::optional<Mask> mask;  // only of panoptic models
};

// What a file says about itself: the part of its JSON document that is needed here.
struct Metadata {
    struct Range {
        std::int64_t low = 1, high = INT_MAX;  // the smallest and the largest size that the model takes
    };
    std::unordered_map<std::int64_t, std::string> names;  // of the labels
    Color color = Color::rgb;                             // that the model takes
    Range batch, height, width;
    std::int64_t top_k = 0;  // the model gives at most so many objects for each image
};

namespace detail {

constexpr int newest_format = 1;  // of the document
constexpr auto file_error = Error::Kind::file, input_error = Error::Kind::input, runtime_error = Error::Kind::runtime;

// Throws an error whose text is made of all parts.
template <typename... Parts>
[[noreturn]] void fail(Error::Kind kind, const Parts&... parts) {
    std::ostringstream text;
    text.imbue(std::locale::classic());
    (text << ... << parts);
    throw Error(kind, text.str());
}

inline const char* text(Color color) { return color == Color::rgb ? "RGB" : "BGR"; }

// Without the details that libraries put on lines of their own.
inline std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }

inline std::string name_of(const std::filesystem::path& path) {
    const auto text = path.u8string();  // from C++20 on, its characters have another type
    return {text.begin(), text.end()};
}

inline void require_file(const std::filesystem::path& path) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored))
        fail(file_error, name_of(path), " does not exist or is not a file; check the path");
}

inline Metadata::Range read_range(const nlohmann::json& document, const char* name) {
    Metadata::Range range;
    const auto ranges = document.value("ranges", nlohmann::json::object());
    if (!ranges.contains(name)) return range;
    range.low = ranges[name].at(0).get<std::int64_t>();
    if (!ranges[name].at(1).is_null()) range.high = std::min(ranges[name].at(1).get<std::int64_t>(), range.high);
    return range;
}

inline Metadata read_metadata(const std::string& file, const nlohmann::json& document) {
    const std::string again = "; export it again: detr-export onnx MODEL --end-to-end -o " + file;
    try {
        if (const auto version = document.at("format_version").get<std::int64_t>(); version > newest_format)
            fail(file_error, file, ": its metadata has format ", version, ", and this header reads ", newest_format,
                 "; take the header of the detr-export that wrote the file");
        if (const auto input = document.value("input", "float"); input != "image")
            fail(file_error, file, " takes prepared arrays (input '", input, "'), not images", again);
        Metadata metadata;
        for (const auto& [label, name] : document.at("id2label").items())
            metadata.names.emplace(std::stoll(label), name.get<std::string>());
        const auto& end_to_end = document.at("end_to_end");
        const auto color = end_to_end.at("color").get<std::string>();
        if (color != "rgb" && color != "bgr") fail(file_error, file, ": its color is '", color, "', not rgb or bgr", again);
        metadata.color = color == "rgb" ? Color::rgb : Color::bgr;
        metadata.top_k = end_to_end.at("top_k").get<std::int64_t>();
        metadata.batch = read_range(document, "batch");
        metadata.height = read_range(document, "height");
        metadata.width = read_range(document, "width");
        return metadata;
    } catch (const Error&) {
        throw;
    } catch (const std::exception& error) {  // of the JSON library, or a label that is no number
        fail(file_error, file, ": its metadata is damaged (", first_line(error.what()), ")", again);
    }
}

inline void require_range(const char* name, std::int64_t size, const Metadata::Range& range, const char* remedy) {
    if (size < range.low || size > range.high)
        fail(input_error, name, " is ", size, ", and the model takes ", range.low, " to ", range.high, "; ", remedy);
}

// Refuses images and thresholds that the model does not take. After it, sizes can be multiplied without overflow.
inline void check_images(const Metadata& metadata, const ImageView* images, std::size_t count, float threshold) {
    if (!(threshold >= 0.0F && threshold <= 1.0F))  // NaN is refused, too
        fail(input_error, "threshold is ", threshold, "; expected a number from 0 to 1");
    if (count == 0) fail(input_error, "there is no image; pass at least one");
    const auto batch = static_cast<std::int64_t>(std::min<std::size_t>(count, INT_MAX));
    require_range("batch", batch, metadata.batch, "pass fewer or more images at a time");
    for (const ImageView* image = images; image != images + count; ++image) {
        if (image->data == nullptr)
            fail(input_error, "the image's data is a null pointer; point it to the first byte of the first row");
        if (image->channels != 3)
            fail(input_error, "the image has ", image->channels, " channels and needs 3; ",
                 image->channels == 1   ? "repeat the gray value three times"
                 : image->channels == 4 ? "drop the alpha channel"
                                        : "convert it to RGB first");
        if (image->height < 1 || image->width < 1)
            fail(input_error, "the image has ", image->height, " rows and ", image->width,
                 " columns; both must be at least 1");
        require_range("height", image->height, metadata.height, "resize the image first");
        require_range("width", image->width, metadata.width, "resize the image first");
        if (image->height != images->height || image->width != images->width)
            fail(input_error, "the images of a batch must have one size; run images of another size by themselves");
        if (image->color != metadata.color)
            fail(input_error, "the pixels are ", text(image->color), " and the file takes ", text(metadata.color),
                 "; set ImageView::color if the pixels are in fact ", text(metadata.color), ", or export the file again ",
                 metadata.color == Color::rgb ? "with --bgr" : "without --bgr");
        if (image->stride() < image->row_bytes())
            fail(input_error, "row_stride is ", image->row_stride, ", and a row has ", image->row_bytes(),
                 " bytes; it counts bytes, not pixels");
        if (image->stride() > PTRDIFF_MAX / static_cast<std::size_t>(image->height) / count)
            fail(input_error, "the images are larger than the memory can be; check height, width and row_stride");
    }
}

// The model's outputs for one call. `masks` is null where the model has none.
struct Outputs {
    const float* scores;
    const std::int64_t* labels;
    const float* boxes;
    const float* masks;
};

struct Shapes {
    std::vector<std::int64_t> scores, labels, boxes, masks;  // `masks` is empty where the model has none
};

inline void check_shapes(const Shapes& shapes, std::int64_t batch) {
    const auto& masks = shapes.masks;
    const std::int64_t kept = shapes.scores.size() == 2 ? shapes.scores[1] : -1;
    const bool right = kept >= 0 && shapes.scores[0] == batch && shapes.labels == shapes.scores &&
                       shapes.boxes == std::vector<std::int64_t>{batch, kept, 4} &&
                       (masks.empty() || (masks.size() == 4 && masks[0] == batch && masks[1] == kept && masks[2] > 0 &&
                                          masks[3] > 0 && masks[2] <= INT_MAX && masks[3] <= INT_MAX));
    if (!right) fail(file_error, "the outputs have other shapes than an end-to-end file gives; export the file again");
}

// The objects of each image whose score is above the threshold, best first.
inline std::vector<std::vector<Detection>> read_outputs(const Metadata& metadata, const Outputs& outputs,
                                                        const Shapes& shapes, float threshold) {
    const auto batch = static_cast<std::size_t>(shapes.scores[0]), kept = static_cast<std::size_t>(shapes.scores[1]);
    std::vector<std::vector<Detection>> found(batch);
    for (std::size_t index = 0; index < batch * kept; ++index) {
        if (!(outputs.scores[index] > threshold)) continue;
        const std::int64_t label = outputs.labels[index];
        const auto name = metadata.names.find(label);
        const float* box = outputs.boxes + 4 * index;
        Detection detection{label,
                            name == metadata.names.end() ? std::to_string(label) : name->second,
                            outputs.scores[index],
                            {box[0], box[1], box[2], box[3]},
                            std::nullopt};
        if (outputs.masks != nullptr) {
            const auto cells = static_cast<std::size_t>(shapes.masks[2]) * static_cast<std::size_t>(shapes.masks[3]);
            const float* mask = outputs.masks + index * cells;
            detection.mask =
                Mask{static_cast<int>(shapes.masks[2]), static_cast<int>(shapes.masks[3]), {mask, mask + cells}};
        }
        found[index / kept].push_back(std::move(detection));
    }
    return found;
}

}  // namespace detail
}  // namespace detr

#endif  // DETR_SHARED_PART

// The second part: ONNX Runtime on the CPU.
#if !defined(DETR_HPP) && !defined(DETR_WITHOUT_ONNXRUNTIME)
#define DETR_HPP

#include <onnxruntime_cxx_api.h>

namespace detr {

struct Options {
    int threads = 0;       // of one run; 0: as many as the CPU has cores
    bool spinning = true;  // idle threads wait busily. That is faster, except beside other busy threads of the program
};

class Model {
 public:
    explicit Model(const std::filesystem::path& path, const Options& options = {}) : session_(open(path, options)) {
        const std::string file = detail::name_of(path);
        metadata_ = detail::read_metadata(file, document(file));
        check_tensors(file);
    }

    // The objects in one image whose score is above the threshold, best first. An image without padded rows is not copied.
    std::vector<Detection> detect(const ImageView& image, float threshold = 0.5F) const {
        return std::move(run(&image, 1, threshold).front());
    }

    // The same for several images of one size, in one run. They are copied unless they lie one after another in memory.
    std::vector<std::vector<Detection>> detect(const std::vector<ImageView>& images, float threshold = 0.5F) const {
        return run(images.data(), images.size(), threshold);
    }

    const Metadata& metadata() const noexcept { return metadata_; }
    bool has_masks() const noexcept { return has_masks_; }

 private:
    static Ort::Session open(const std::filesystem::path& path, const Options& options) {
        require_library();  // before anything of Ort exists, because even its destructors call the library
        detail::require_file(path);
        if (options.threads < 0) detail::fail(detail::input_error, "threads is ", options.threads, "; expected 0 or more");
        try {
            // One for the process; it outlives all models. Errors come as exceptions, not also on stderr.
            static const Ort::Env env(ORT_LOGGING_LEVEL_FATAL, "detr");
            Ort::SessionOptions settings;
            settings.SetIntraOpNumThreads(options.threads);
            if (!options.spinning) settings.AddConfigEntry("session.intra_op.allow_spinning", "0");
            return Ort::Session(env, path.c_str(), settings);
        } catch (const Ort::Exception& error) {
            detail::fail(detail::file_error, detail::name_of(path), " cannot be loaded by ONNX Runtime (",
                         detail::first_line(error.what()), "); if it is an ONNX file, copy or export it again");
        }
    }

    // The library may be older than the header. Then it has no such interface, and the first call would crash.
    static void require_library() {
        static const OrtApi* const api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
        if (api == nullptr)
            detail::fail(detail::runtime_error, "this program was built for ONNX Runtime 1.", ORT_API_VERSION, " and found ",
                         OrtGetApiBase()->GetVersionString(), ", which is older; install that version or a later one");
#ifdef ORT_API_MANUAL_INIT  // without this macro, the header of ONNX Runtime does the same before main
        static const bool once = (Ort::InitApi(api), true);
        static_cast<void>(once);
#endif
    }

    nlohmann::json document(const std::string& file) const {
        Ort::AllocatorWithDefaultOptions allocator;
        const auto text = session_.GetModelMetadata().LookupCustomMetadataMapAllocated("detr_export", allocator);
        if (text == nullptr)
            detail::fail(detail::file_error, file,
                         " has no metadata of detr-export; make it with: ", "detr-export onnx MODEL --end-to-end -o ", file);
        return nlohmann::json::parse(text.get(), nullptr, /*allow_exceptions=*/false);  // damaged text becomes no object
    }

    // Sees to it that the outputs can be read as they are, whatever the metadata says.
    void check_tensors(const std::string& file) {
        Ort::AllocatorWithDefaultOptions allocator;
        std::unordered_map<std::string, ONNXTensorElementDataType> types;
        for (std::size_t index = 0; index < session_.GetInputCount(); ++index)
            types[session_.GetInputNameAllocated(index, allocator).get()] = type(session_.GetInputTypeInfo(index));
        for (std::size_t index = 0; index < session_.GetOutputCount(); ++index)
            types[session_.GetOutputNameAllocated(index, allocator).get()] = type(session_.GetOutputTypeInfo(index));
        has_masks_ = types.count("masks") == 1;
        const auto is = [&types](const char* name, ONNXTensorElementDataType expected) {
            const auto found = types.find(name);
            return found != types.end() && found->second == expected;
        };
        if (session_.GetInputCount() != 1 || !is("image", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8) ||
            !is("scores", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) || !is("labels", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) ||
            !is("boxes", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) ||
            (has_masks_ && !is("masks", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)))
            detail::fail(detail::file_error, file, " has other inputs or outputs than its metadata says; export it again");
    }

    static ONNXTensorElementDataType type(const Ort::TypeInfo& info) {
        return info.GetONNXType() == ONNX_TYPE_TENSOR ? info.GetTensorTypeAndShapeInfo().GetElementType()
                                                      : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    }

    // The pixels of all images, one after another: in the caller's memory, or in `copy`.
    static const std::uint8_t* gather(const ImageView* images, std::size_t count, std::vector<std::uint8_t>& copy) {
        const std::size_t bytes = images[0].bytes();
        const auto first = reinterpret_cast<std::uintptr_t>(images[0].data);
        bool in_place = true;
        for (std::size_t index = 0; index < count; ++index)
            in_place = in_place && images[index].is_packed() &&
                       reinterpret_cast<std::uintptr_t>(images[index].data) == first + index * bytes;
        if (in_place) return images[0].data;
        copy.resize(count * bytes);
        std::uint8_t* row = copy.data();
        for (const ImageView* image = images; image != images + count; ++image)
            for (int y = 0; y < image->height; ++y, row += image->row_bytes())
                std::memcpy(row, image->data + static_cast<std::size_t>(y) * image->stride(), image->row_bytes());
        return copy.data();
    }

    std::vector<std::vector<Detection>> run(const ImageView* images, std::size_t count, float threshold) const {
        if (!session_) detail::fail(detail::input_error, "the model was moved to another object; use that one");
        detail::check_images(metadata_, images, count, threshold);
        std::vector<std::uint8_t> copy;
        const std::uint8_t* pixels = gather(images, count, copy);
        const std::array<std::int64_t, 4> shape{static_cast<std::int64_t>(count), images[0].height, images[0].width, 3};
        const char* const input = "image";
        const std::array<const char*, 4> names{"scores", "labels", "boxes", "masks"};
        try {
            const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
            // ONNX Runtime reads its inputs and never writes to them.
            const Ort::Value image = Ort::Value::CreateTensor<std::uint8_t>(memory, const_cast<std::uint8_t*>(pixels),
                                                                            count * images[0].bytes(), shape.data(), 4);
            const auto values = session_.Run(Ort::RunOptions{nullptr}, &input, &image, 1, names.data(), has_masks_ ? 4 : 3);
            const auto shape_of = [&values](std::size_t index) {
                return values[index].GetTensorTypeAndShapeInfo().GetShape();
            };
            const detail::Shapes shapes{shape_of(0), shape_of(1), shape_of(2),
                                        has_masks_ ? shape_of(3) : std::vector<std::int64_t>{}};
            detail::check_shapes(shapes, shape[0]);
            const detail::Outputs outputs{values[0].GetTensorData<float>(), values[1].GetTensorData<std::int64_t>(),
                                          values[2].GetTensorData<float>(),
                                          has_masks_ ? values[3].GetTensorData<float>() : nullptr};
            return detail::read_outputs(metadata_, outputs, shapes, threshold);
        } catch (const Ort::Exception& error) {
            detail::fail(detail::runtime_error, "ONNX Runtime failed: ", detail::first_line(error.what()));
        }
    }

    mutable Ort::Session session_;  // Run is not const, but safe to call from many threads
    Metadata metadata_;
    bool has_masks_ = false;
};

}  // namespace detr

#endif  // DETR_HPP
