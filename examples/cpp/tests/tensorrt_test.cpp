// detr_tensorrt.hpp on the double of TensorRT and CUDA: tensorrt_test FOLDER_OF_FAKE_ENGINES
#include "detr_tensorrt.hpp"

#include <thread>

#include "check.hpp"
#include "control.hpp"

using check::Picture;
using detr::TensorRTModel;
namespace control = tensorrt_double;

namespace {

// Makes a call of the library fail while it exists.
struct Failing {
    explicit Failing(const char* call) { control::fail_at = call; }
    ~Failing() { control::fail_at.clear(); }
};

void test_digest() {
    using detr::detail::sha256;  // examples of FIPS 180-4, and of lengths around a block
    CHECK(sha256("") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq") ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(sha256(std::string(64, 'a')) == "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb");
    CHECK(sha256(std::string(1000000, 'a')) == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

void test_images(const std::string& folder) {
    const TensorRTModel model(folder + "/right.engine");
    const Picture picture(5, 7, 1), other(5, 7, 2), padded(5, 7, 3, 11), large(16, 16, 4), small(2, 3, 5);
    for (const Picture* one : {&picture, &padded, &large, &small}) CHECK(check::is_right(model.detect(one->view()), *one));
    const auto found = model.detect({other.view(), padded.view(), picture.view()}, 0.5F);
    CHECK(found.size() == 3 && check::is_right(found[0], other) && check::is_right(found[1], padded) &&
          check::is_right(found[2], picture));
    CHECK(model.detect(picture.view(), 0.0F).size() == 3);
    CHECK(model.detect(picture.view(), 0.6F).size() == 1);

    const TensorRTModel panoptic(folder + "/panoptic.engine", 1), narrow(folder + "/narrow-labels.engine");
    CHECK(panoptic.has_masks() && !model.has_masks() && model.metadata().top_k == 3);
    CHECK(check::is_right(panoptic.detect(picture.view()), picture, true));
    CHECK(check::is_right(narrow.detect(picture.view()), picture));
}

void test_profiles(const std::string& folder) {
    const TensorRTModel model(folder + "/right.engine");
    const auto profile_of = [&model](const std::vector<detr::ImageView>& views) {
        model.detect(views);
        return control::profile.load();
    };
    const Picture tiny(3, 3, 1), middle(8, 7, 1), large(9, 8, 1), wide(8, 17, 1);
    CHECK(profile_of({tiny.view()}) == 1);  // of the two with the smallest maximum, the one with the nearest optimum
    CHECK(profile_of({middle.view()}) == 2);
    CHECK(profile_of({large.view()}) == 0);
    CHECK(profile_of({tiny.view(), tiny.view()}) == 0);
    CHECK_ERROR(input, ({"1x8x17", "1x2x2 to 4x16x16", "1x2x2 to 1x8x8", "--profile"}), model.detect(wide.view()));
    const std::vector<detr::ImageView> five(5, tiny.view());
    CHECK_ERROR(input, ({"5x3x3", "--profile"}), model.detect(five));
    CHECK(profile_of({tiny.view()}) == 1);  // it still works

    model.detect(std::vector<detr::ImageView>(4, large.view()));
    const int allocations = control::allocations;  // memory is kept
    for (int run = 0; run < 5; ++run) model.detect(tiny.view());
    CHECK(control::allocations == allocations);
}

void test_admission(const std::string& folder) {
    const auto open = [&folder](const char* name, int device = 0) { TensorRTModel model(folder + '/' + name, device); };
    CHECK_ERROR(file, ({"missing.engine", "does not exist"}), open("missing.engine"));
    CHECK_ERROR(file, ({"alone.engine.json is missing", "copy it together"}), open("alone.engine"));
    CHECK_ERROR(file, ({"format 3", "reads 2", "take the header"}), open("newer.engine"));
    CHECK_ERROR(file, ({"old format 1", "detr-export trt"}), open("older.engine"));
    CHECK_ERROR(file, ({"TensorRT-RTX", "--rtx"}), open("rtx.engine"));
    CHECK_ERROR(file, ({"SHA-256", "copy both again"}), open("other-digest.engine"));
    CHECK_ERROR(file, ({"not images", "--end-to-end"}), open("prepared.engine"));
    CHECK_ERROR(file, ({"other inputs or outputs", "--end-to-end"}), open("half.engine"));
    CHECK_ERROR(file, ({"damaged.engine is refused", "the magic tag does not match", "build it again"}),
                open("damaged.engine"));
    for (const char* name : {"not-json.engine", "no-library.engine", "bad-version.engine"})
        CHECK_ERROR(file, ({name, "damaged", "build it again"}), open(name));
    CHECK_ERROR(runtime, ({"cudaSetDevice", "invalid device ordinal", "nvidia-smi"}), open("right.engine", 2));
    CHECK_ERROR(runtime, ({"invalid device ordinal"}), open("right.engine", -1));
    const Picture picture(4, 4, 1);
    CHECK_ERROR(file, ({"other shapes"}), TensorRTModel(folder + "/other-boxes.engine").detect(picture.view()));
    CHECK(control::live == 0);

    // The version of the library
    control::version = 100301;
    CHECK_ERROR(file, ({"built with TensorRT 10.3.0.26", "this is 10.3.1", "detr-export trt"}), open("right.engine"));
    open("compatible.engine");
    CHECK(control::host_code);
    control::version = 110400;
    open("compatible.engine");
    control::version = 120000;
    CHECK_ERROR(file, ({"this is 12.0.0"}), open("compatible.engine"));
    control::version = 100200;
    CHECK_ERROR(file, ({"this is 10.2.0"}), open("compatible.engine"));
    control::version = 100300;
    open("right.engine");
    CHECK(!control::host_code);

    // The kind of GPU
    control::capability_major = 9;
    control::capability_minor = 0;
    CHECK_ERROR(file, ({"capability 9.0", "detr-export trt", "--hardware-compatible"}), open("right.engine"));
    open("hardware.engine");
    control::capability_major = 7;
    CHECK_ERROR(file, ({"capability 7.0"}), open("hardware.engine"));
    control::capability_major = 8;
    control::capability_minor = 9;
}

void test_failures(const std::string& folder) {
    const Picture picture(5, 7, 1, 3);
    for (const char* call : {"createInferRuntime", "createExecutionContext", "cudaStreamCreateWithFlags", "cudaGetDevice"}) {
        const Failing failing(call);
        CHECK_ERROR(runtime, ({"fail", ";"}), TensorRTModel(folder + "/right.engine"));
        CHECK(control::live == 0);
    }
    for (const char* call : {"setOptimizationProfileAsync", "setInputShape", "setTensorAddress", "enqueueV3"}) {
        const TensorRTModel model(folder + "/right.engine");
        {
            const Failing failing(call);
            CHECK_ERROR(runtime, ({std::string(call) + " failed as it was told to"}), model.detect(picture.view()));
        }
        CHECK(check::is_right(model.detect(picture.view()), picture));  // it still works
    }
    for (const char* call : {"cudaMalloc", "cudaMemcpy2DAsync", "cudaMemcpyAsync", "cudaStreamSynchronize"}) {
        const TensorRTModel model(folder + "/right.engine");
        {
            const Failing failing(call);
            CHECK_ERROR(runtime, ({std::string(call) + " failed", "nvidia-smi"}), model.detect(picture.view()));
        }
        CHECK(check::is_right(model.detect(picture.view()), picture));
    }
    for (const char* call : {"enqueueV3", "cudaMemcpyAsync"}) {  // no copy is left that reads an image after the call
        const TensorRTModel model(folder + "/right.engine");
        auto gone = std::make_unique<Picture>(16, 16, 2);
        {
            const Failing failing(call);
            CHECK_ERROR(runtime, ({call}), model.detect(gone->view()));
        }
        gone.reset();
        CHECK(check::is_right(model.detect(picture.view()), picture));
    }
    CHECK(control::live == 0);
    const TensorRTModel model(folder + "/right.engine");
    CHECK_ERROR(input, ({"threshold"}), model.detect(picture.view(), NAN));
    detr::ImageView view = picture.view();
    view.channels = 1;
    CHECK_ERROR(input, ({"gray"}), model.detect(view));
    CHECK_ERROR(input, ({"no image"}), model.detect(std::vector<detr::ImageView>{}));
}

void test_moving(const std::string& folder) {
    const Picture picture(4, 4, 1);
    TensorRTModel first(folder + "/right.engine"), second(std::move(first));
    CHECK_ERROR(input, ({"moved"}), first.detect(picture.view()));
    first = TensorRTModel(folder + "/panoptic.engine", 1);
    CHECK(check::is_right(first.detect(picture.view()), picture, true));
    first = std::move(second);
    CHECK(check::is_right(first.detect(picture.view()), picture));
}

void test_threads(const std::string& folder) {
    const TensorRTModel model(folder + "/panoptic.engine", 1);
    std::atomic<int> right{0};
    std::vector<std::thread> threads;
    for (unsigned number = 0; number < 4; ++number)
        threads.emplace_back([&model, &right, number] {
            for (unsigned run = 0; run < 50; ++run) {
                const Picture picture(3 + static_cast<int>(number), 5 + static_cast<int>(run % 3), 100 * number + run,
                                      number % 2);
                right += check::is_right(model.detect(picture.view()), picture, true) ? 1 : 0;
            }
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(right == 200);
}

}  // namespace

int main(int, char** argv) {
    const std::string folder = argv[1];
    test_digest();
    test_images(folder);
    test_profiles(folder);
    test_admission(folder);
    test_failures(folder);
    test_moving(folder);
    test_threads(folder);
    CHECK(control::live == 0);  // all memory and all objects were given back
    return check::finish();
}
