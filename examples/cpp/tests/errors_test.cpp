// Every bad file and input gives a detr::Error that names the remedy: errors_test FOLDER_OF_FAKES
#include <cmath>

#include "check.hpp"

using check::Picture;

namespace {

void test_files(const std::string& folder) {
    const auto open = [&folder](const char* name) { detr::Model model(folder + '/' + name); };
    CHECK_ERROR(file, ({"missing.onnx", "does not exist", "check the path"}), open("missing.onnx"));
    CHECK_ERROR(file, ({"not a file"}), open("."));
    CHECK_ERROR(file, ({"text.onnx", "cannot be loaded", "export it again"}), open("text.onnx"));
    CHECK_ERROR(file, ({"empty.onnx", "export it again"}), open("empty.onnx"));
    CHECK_ERROR(file, ({"no metadata", "--end-to-end"}), open("no-metadata.onnx"));
    CHECK_ERROR(file, ({"not images", "--end-to-end"}), open("prepared.onnx"));
    CHECK_ERROR(file, ({"not images", "--end-to-end"}), open("old.onnx"));
    CHECK_ERROR(file, ({"format 2", "reads 1", "take the header"}), open("newer.onnx"));
    for (const char* name : {"not-json.onnx", "not-an-object.onnx", "no-names.onnx", "bad-label.onnx"})
        CHECK_ERROR(file, ({name, "damaged", "export it again"}), open(name));
    CHECK_ERROR(file, ({"color is 'grb'", "export it again"}), open("bad-color.onnx"));
    CHECK_ERROR(file, ({"other inputs or outputs", "export it again"}), open("other-input.onnx"));
    CHECK_ERROR(file, ({"other inputs or outputs", "export it again"}), open("other-labels.onnx"));
    CHECK_ERROR(input, ({"threads is -1", "0 or more"}), detr::Model(folder + "/right.onnx", {-1, true}));
    const detr::Model boxes(folder + "/other-boxes.onnx");
    const Picture picture(4, 4, 1);
    CHECK_ERROR(file, ({"other shapes", "export"}), boxes.detect(picture.view()));
}

void test_images(const std::string& folder) {
    const detr::Model model(folder + "/right.onnx"), narrow(folder + "/narrow.onnx"), bgr(folder + "/bgr.onnx");
    const Picture picture(4, 6, 1), other(6, 4, 1);
    const auto changed = [&picture](auto change) {
        detr::ImageView view = picture.view();
        change(view);
        return view;
    };
    const auto refused = [&](auto change) { model.detect(changed(change)); };
    CHECK_ERROR(input, ({"null pointer"}), refused([](auto& view) { view.data = nullptr; }));
    CHECK_ERROR(input, ({"null pointer"}), model.detect(detr::ImageView{}));
    CHECK_ERROR(input, ({"1 channels", "gray"}), refused([](auto& view) { view.channels = 1; }));
    CHECK_ERROR(input, ({"4 channels", "alpha"}), refused([](auto& view) { view.channels = 4; }));
    CHECK_ERROR(input, ({"2 channels", "RGB"}), refused([](auto& view) { view.channels = 2; }));
    CHECK_ERROR(input, ({"-3 channels"}), refused([](auto& view) { view.channels = -3; }));
    CHECK_ERROR(input, ({"0 rows", "at least 1"}), refused([](auto& view) { view.height = 0; }));
    CHECK_ERROR(input, ({"0 columns", "at least 1"}), refused([](auto& view) { view.width = 0; }));
    CHECK_ERROR(input, ({"-5 rows"}), refused([](auto& view) { view.height = -5; }));
    CHECK_ERROR(input, ({"height is 16385", "1 to 16384", "resize"}), refused([](auto& view) { view.height = 16385; }));
    CHECK_ERROR(input, ({"width is 2147483647", "resize"}), refused([](auto& view) { view.width = INT_MAX; }));
    CHECK_ERROR(input, ({"row_stride is 6", "a row has 18", "bytes"}), refused([](auto& view) { view.row_stride = 6; }));
    CHECK_ERROR(input, ({"larger than the memory"}), refused([](auto& view) { view.row_stride = SIZE_MAX / 2; }));
    CHECK_ERROR(input, ({"BGR", "RGB", "ImageView::color", "with --bgr"}),
                refused([](auto& view) { view.color = detr::Color::bgr; }));
    CHECK_ERROR(input, ({"RGB", "BGR", "without --bgr"}), bgr.detect(picture.view()));

    CHECK_ERROR(input, ({"no image"}), model.detect(std::vector<detr::ImageView>{}));
    CHECK_ERROR(input, ({"one size"}), model.detect({picture.view(), other.view()}));
    CHECK_ERROR(input, ({"null pointer"}), model.detect({picture.view(), changed([](auto& view) { view.data = nullptr; })}));
    CHECK_ERROR(input, ({"batch is 3", "1 to 2", "fewer"}),
                narrow.detect({picture.view(), picture.view(), picture.view()}));
    CHECK_ERROR(input, ({"height is 1", "2 to 8"}), narrow.detect(Picture(1, 4, 1).view()));
    CHECK_ERROR(input, ({"width is 9", "3 to 8"}), narrow.detect(Picture(4, 9, 1).view()));

    for (const float threshold : {-0.1F, 1.1F, std::nanf(""), INFINITY, -INFINITY})
        CHECK_ERROR(input, ({"threshold is", "from 0 to 1"}), model.detect(picture.view(), threshold));
    CHECK(check::is_right(model.detect(picture.view()), picture));  // it still works
}

}  // namespace

int main(int, char** argv) {
    test_files(argv[1]);
    test_images(argv[1]);
    return check::finish();
}
