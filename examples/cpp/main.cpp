// Prints what a model finds in an image: detr_detect MODEL.onnx IMAGE.ppm [THRESHOLD]
#include <fstream>
#include <iostream>
#include <limits>
#include <sstream>

#include "detr.hpp"

struct Image {
    int width = 0, height = 0;
    std::vector<std::uint8_t> pixels;  // RGB
};

// A binary PPM file (P6) with 8 bits a channel.
Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    int largest = 0;
    Image image;
    file >> magic;
    for (int* number : {&image.width, &image.height, &largest}) {
        while ((file >> std::ws).peek() == '#') file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
        file >> *number;
    }
    file.get();  // one space
    const bool right = file && magic == "P6" && largest == 255 && image.width > 0 && image.height > 0;
    if (!right || image.width > 16384 || image.height > 16384)
        throw std::runtime_error(path + " is not a PPM file; make one with: magick IMAGE -depth 8 " + path);
    image.pixels.resize(std::size_t{3} * static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height));
    if (!file.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size())))
        throw std::runtime_error(path + " is shorter than its header says; copy it again");
    return image;
}

int main(int argc, char** argv) try {
    if (argc < 3) throw std::runtime_error("usage: detr_detect MODEL.onnx IMAGE.ppm [THRESHOLD]");
    const detr::Model model(argv[1]);
    const Image image = read_ppm(argv[2]);
    float threshold = 0.5F;
    if (argc > 3 && !(std::istringstream(argv[3]) >> threshold)) throw std::runtime_error("THRESHOLD is not a number");
    for (const detr::Detection& found : model.detect({image.pixels.data(), image.height, image.width}, threshold))
        std::cout << found.name << ' ' << found.score << ' ' << found.box.x_min << ' ' << found.box.y_min << ' '
                  << found.box.x_max << ' ' << found.box.y_max << '\n';
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
