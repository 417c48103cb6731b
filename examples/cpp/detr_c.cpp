// The C interface, on top of detr.hpp. No exception leaves this file.
#include "detr.h"

#include <new>

#include "detr.hpp"

struct detr_model {
    detr::Model model;
};

struct detr_results {
    std::vector<std::vector<detr::Detection>> found;  // owns the names and masks
    std::vector<std::vector<detr_detection>> images;  // what callers see of it
};

namespace {

thread_local std::string last_error;

// Runs `work` and turns what it throws into a status.
template <typename Work>
detr_status guarded(Work&& work) noexcept {
    try {
        try {
            work();
            return DETR_OK;
        } catch (const detr::Error& error) {
            last_error = error.what();
            switch (error.kind()) {
                case detr::Error::Kind::file: return DETR_ERROR_FILE;
                case detr::Error::Kind::input: return DETR_ERROR_INPUT;
                case detr::Error::Kind::runtime: break;
            }
            return DETR_ERROR_RUNTIME;
        } catch (const std::bad_alloc&) {
            last_error = "no memory left";  // short enough to need none
            return DETR_ERROR_MEMORY;
        } catch (const std::exception& error) {
            last_error = error.what();
        } catch (...) {
            last_error = "unknown error";
        }
    } catch (...) {  // the message did not fit into the memory
        return DETR_ERROR_MEMORY;
    }
    return DETR_ERROR_RUNTIME;
}

void require(bool fine, const char* message) {
    if (!fine) throw detr::Error(detr::Error::Kind::input, message);
}

detr_detection seen(const detr::Detection& found) {
    detr_detection result{};
    result.label = found.label;
    result.name = found.name.c_str();
    result.score = found.score;
    result.x_min = found.box.x_min;
    result.y_min = found.box.y_min;
    result.x_max = found.box.x_max;
    result.y_max = found.box.y_max;
    if (found.mask) {
        result.mask_height = found.mask->height;
        result.mask_width = found.mask->width;
        result.mask = found.mask->cells.data();
    }
    return result;
}

}  // namespace

detr_status detr_open(const char* path, int32_t threads, int32_t spinning, detr_model** model) {
    return guarded([&] {
        require(model != nullptr, "model is NULL; pass the address of a pointer");
        *model = nullptr;
        require(path != nullptr, "path is NULL; pass the path of an ONNX file");
        *model = new detr_model{detr::Model(std::filesystem::u8path(path), {threads, spinning != 0})};
    });
}

void detr_close(detr_model* model) { delete model; }

detr_status detr_detect(const detr_model* model, const detr_image* images, size_t count, float threshold,
                        detr_results** results) {
    return guarded([&] {
        require(results != nullptr, "results is NULL; pass the address of a pointer");
        *results = nullptr;
        require(model != nullptr, "model is NULL; open one with detr_open");
        require(images != nullptr || count == 0, "images is NULL; pass the address of the first image");
        std::vector<detr::ImageView> views;
        for (size_t index = 0; index < count; ++index) {
            const detr_image& image = images[index];
            require(image.color == DETR_RGB || image.color == DETR_BGR, "color is unknown; set DETR_RGB or DETR_BGR");
            views.push_back({image.data, image.height, image.width, image.channels, image.row_stride,
                             image.color == DETR_RGB ? detr::Color::rgb : detr::Color::bgr});
        }
        auto made = std::make_unique<detr_results>();
        made->found = model->model.detect(views, threshold);
        for (const auto& found : made->found) {
            made->images.emplace_back();
            for (const detr::Detection& detection : found) made->images.back().push_back(seen(detection));
        }
        *results = made.release();
    });
}

const detr_detection* detr_results_get(const detr_results* results, size_t image, size_t* count) {
    const bool found = results != nullptr && image < results->images.size();
    if (count != nullptr) *count = found ? results->images[image].size() : 0;
    return found ? results->images[image].data() : nullptr;
}

void detr_results_free(detr_results* results) { delete results; }

const char* detr_last_error(void) { return last_error.c_str(); }
