// The checks of these tests. A failed one prints where it is and lets the test go on; `finish` gives main's result.
#pragma once

#include <cstdint>
#include <functional>
#include <iostream>
#include <string>
#include <vector>

#ifndef DETR_SHARED_PART  // a test of detr_tensorrt.hpp includes that first, and has no ONNX Runtime
#include "detr.hpp"
#endif

namespace check {

inline int failures = 0, checks = 0;

inline void that(bool right, const std::string& what, const char* file, int line) {
    ++checks;
    if (right) return;
    ++failures;
    std::cerr << file << ':' << line << ": " << what << '\n';
}

// Whether `work` throws a detr::Error of this kind whose text has all of `parts`.
inline void error(detr::Error::Kind kind, const std::vector<std::string>& parts, const std::function<void()>& work,
                  const char* file, int line) {
    try {
        work();
    } catch (const detr::Error& error) {
        const std::string text = error.what();
        that(error.kind() == kind, "another kind of error: " + text, file, line);
        for (const std::string& part : parts)
            that(text.find(part) != std::string::npos, "'" + part + "' is not in: " + text, file, line);
        that(text.find('\n') == std::string::npos, "more than one line: " + text, file, line);
        return;
    } catch (const std::exception& error) {
        that(false, std::string("another exception: ") + error.what(), file, line);
        return;
    }
    that(false, "no error; expected: " + parts.front(), file, line);
}

inline int finish() {
    std::cout << checks << " checks, " << failures << " failures\n";
    return failures == 0 && checks > 0 ? 0 : 1;
}

// An image whose bytes differ, and a view of it. `padding`: bytes after each row, which no model may read.
struct Picture {
    Picture(int height, int width, unsigned seed, std::size_t padding = 0)
        : height(height), width(width), stride(static_cast<std::size_t>(width) * 3 + padding) {
        bytes.assign(static_cast<std::size_t>(height) * stride, 255);
        for (std::size_t row = 0; row < static_cast<std::size_t>(height); ++row)
            for (std::size_t column = 0; column < static_cast<std::size_t>(width) * 3; ++column) {
                seed = seed * 1103515245U + 12345U;
                bytes[row * stride + column] = static_cast<std::uint8_t>(seed >> 16);
                sum += static_cast<float>(bytes[row * stride + column]);
            }
    }
    detr::ImageView view() const { return {bytes.data(), height, width, 3, stride}; }

    int height, width;
    std::size_t stride;
    std::vector<std::uint8_t> bytes;
    float sum = 0;  // without the padding
};

// Whether this is what make_fake_model.py promises for a picture, with a threshold between its second and third score.
inline bool is_right(const std::vector<detr::Detection>& found, const Picture& picture, bool masks = false) {
    if (found.size() != 2) return false;
    const float first = static_cast<float>(picture.bytes[0]), width = static_cast<float>(picture.width),
                height = static_cast<float>(picture.height);
    for (std::size_t k = 0; k < 2; ++k) {
        const detr::Detection& object = found[k];
        const float step = static_cast<float>(k);
        const detr::Box& box = object.box;
        if (object.label != (k == 0 ? 1 : 0) || object.name != (k == 0 ? "traffic light" : "cat")) return false;
        if (object.score != (k == 0 ? 0.9F : 0.6F) || object.mask.has_value() != masks) return false;
        if (box.x_min != picture.sum + step || box.y_min != first + step || box.x_max != width + step ||
            box.y_max != height + step)
            return false;
        const std::vector<float> cells{0.25F + step, 0.5F + step, 0.75F + step, step, step, step};
        if (masks && (object.mask->height != 2 || object.mask->width != 3 || object.mask->cells != cells)) return false;
    }
    return true;
}

}  // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
#define CHECK_ERROR(kind, parts, statement) \
    check::error(detr::Error::Kind::kind, std::vector<std::string> parts, [&] { statement; }, __FILE__, __LINE__)
