// detr.hpp on files that say of an image what depends on its pixels: model_test FOLDER_OF_FAKES
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <new>
#include <thread>

#include "check.hpp"

using check::Picture;

// Counts blocks of memory of exactly this size, to see whether an image is copied.
static std::atomic<std::size_t> watched_size{0};
static std::atomic<int> watched_blocks{0};

// Not inlined: otherwise GCC warns of a malloc that it sees and a delete that it does not.
[[gnu::noinline]] void* operator new(std::size_t size) {
    if (size == watched_size) ++watched_blocks;
    void* const memory = std::malloc(size == 0 ? 1 : size);
    if (memory == nullptr) throw std::bad_alloc();
    return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

void test_images(const std::string& folder) {
    const detr::Model model(folder + "/right.onnx");
    CHECK(model.metadata().top_k == 3);
    CHECK(model.metadata().names.size() == 2);
    CHECK(!model.has_masks());
    const Picture picture(5, 7, 1), other(5, 7, 2), padded(5, 7, 3, 11), narrow(1, 1, 4), row(1, 6, 5, 64);
    for (const Picture* one : {&picture, &other, &padded, &narrow, &row})
        CHECK(check::is_right(model.detect(one->view()), *one));
    CHECK(check::is_right(model.detect({picture.bytes.data(), 5, 7}), picture));

    const auto found = model.detect({picture.view(), padded.view(), other.view()}, 0.5F);
    CHECK(found.size() == 3);
    CHECK(check::is_right(found[0], picture) && check::is_right(found[1], padded) && check::is_right(found[2], other));

    CHECK(model.detect(picture.view(), 0.0F).size() == 3);
    CHECK(model.detect(picture.view(), 0.0F)[2].name == "7");  // a label without a name
    CHECK(model.detect(picture.view(), 0.6F).size() == 1);     // strictly above
    CHECK(model.detect(picture.view(), 1.0F).empty());

    const detr::Model bgr(folder + "/bgr.onnx", {1, false}), no_ranges(folder + "/no-ranges.onnx");
    detr::ImageView view = picture.view();
    CHECK(check::is_right(no_ranges.detect(view), picture));
    view.color = detr::Color::bgr;
    CHECK(check::is_right(bgr.detect(view), picture));

    const detr::Model panoptic(folder + "/panoptic.onnx");
    CHECK(panoptic.has_masks());
    const auto masks = panoptic.detect({picture.view(), other.view()}, 0.5F);
    CHECK(check::is_right(masks[0], picture, true) && check::is_right(masks[1], other, true));
}

void test_copies(const std::string& folder) {
    const detr::Model model(folder + "/right.onnx");
    const Picture picture(301, 401, 1), padded(301, 401, 2, 1), two(602, 401, 3);
    const auto blocks = [&](const std::vector<detr::ImageView>& views) {
        watched_size = views.size() * views[0].bytes();
        watched_blocks = 0;
        views.size() == 1 ? static_cast<void>(model.detect(views[0])) : static_cast<void>(model.detect(views));
        watched_size = 0;
        return watched_blocks.load();
    };
    detr::ImageView top = two.view(), bottom = top;
    top.height = bottom.height = 301;
    bottom.data += top.bytes();
    CHECK(picture.view().is_packed() && !padded.view().is_packed());
    CHECK(blocks({picture.view()}) == 0);
    CHECK(blocks({padded.view()}) == 1);
    CHECK(blocks({top, bottom}) == 0);
    CHECK(blocks({bottom, top}) == 1);
    CHECK(blocks({picture.view(), padded.view()}) == 1);
}

void test_moving(const std::string& folder) {
    const Picture picture(4, 4, 1);
    detr::Model first(folder + "/right.onnx"), second(std::move(first));
    CHECK(check::is_right(second.detect(picture.view()), picture));
    CHECK_ERROR(input, ({"moved"}), first.detect(picture.view()));
    first = std::move(second);
    CHECK(check::is_right(first.detect(picture.view()), picture));
    first = detr::Model(folder + "/panoptic.onnx");
    CHECK(check::is_right(first.detect(picture.view()), picture, true));
    std::vector<detr::Model> several;
    for (int index = 0; index < 3; ++index) several.emplace_back(folder + "/right.onnx");
    CHECK(check::is_right(several[0].detect(picture.view()), picture));
}

void test_threads(const std::string& folder) {
    const detr::Model model(folder + "/panoptic.onnx", {2, true});
    std::atomic<int> right{0};
    std::vector<std::thread> threads;
    for (unsigned number = 0; number < 4; ++number)
        threads.emplace_back([&model, &right, number] {
            for (unsigned run = 0; run < 25; ++run) {
                const Picture picture(3 + static_cast<int>(number), 5 + static_cast<int>(run % 3), 100 * number + run,
                                      number % 2);
                right += check::is_right(model.detect(picture.view()), picture, true) ? 1 : 0;
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(right == 100);
}

std::size_t resident_bytes() {
    std::size_t total = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> total >> resident;
    return resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

// Memory does not grow from run to run, also when runs fail. Each image has 200 kB: a copy that is lost shows.
void test_repeated_runs(const std::string& folder) {
    const detr::Model model(folder + "/panoptic.onnx");
    const Picture picture(256, 260, 1), padded(256, 260, 2, 4);
    const auto runs = [&](int count) {
        for (int index = 0; index < count; ++index) {
            CHECK(model.detect({picture.view(), padded.view()}, 0.5F).size() == 2);
            CHECK_ERROR(input, ({"threshold"}), model.detect(padded.view(), 2.0F));
        }
    };
    runs(20);
    const std::size_t before = resident_bytes();
    runs(150);
    const std::size_t after = resident_bytes();
    std::cout << "memory after 20 runs: " << before / 1024 << " kB, after 170: " << after / 1024 << " kB\n";
#ifndef __SANITIZE_ADDRESS__  // it keeps freed memory for a while, and reports what is lost by itself
    CHECK(after < before + 8 * 1024 * 1024);
#endif
}

}  // namespace

int main(int, char** argv) {
    const std::string folder = argv[1];
    test_images(folder);
    test_copies(folder);
    test_moving(folder);
    test_threads(folder);
    test_repeated_runs(folder);
    return check::finish();
}
