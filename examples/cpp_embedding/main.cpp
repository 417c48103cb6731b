// A C++ program that hands its own frames to detr-export's Predictor, without a copy.
#include <pybind11/embed.h>
#include <pybind11/stl.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

namespace py = pybind11;
using namespace py::literals;

// A camera's buffer: the channels are BGR, and the rows are longer than their pixels.
struct Frame {
  int height = 480, width = 600, row_bytes = 1856;
  std::vector<unsigned char> pixels = std::vector<unsigned char>(std::size_t(height) * row_bytes);

  void capture(int number) {  // the camera sees red, then blue, and so on
    for (std::size_t i = 0; i < pixels.size(); ++i) pixels[i] = i % row_bytes % 3 == (number % 2 ? 0 : 2) ? 255 : 0;
  }
  py::memoryview view() const {  // read-only; Python looks at it during a call, and does not keep it
    return py::memoryview::from_buffer(pixels.data(), {height, width, 3}, {row_bytes, 3, 1});
  }
};

void detect(const py::object& predictor, const Frame& frame) {
  py::object found = predictor.attr("detect")(frame.view(), "threshold"_a = 0.5, "color"_a = "bgr");
  auto names = found.attr("names").cast<std::vector<std::string>>();
  auto scores = found.attr("scores").attr("tolist")().cast<std::vector<float>>();
  auto boxes = found.attr("boxes").attr("tolist")().cast<std::vector<std::vector<float>>>();
  for (std::size_t i = 0; i < names.size(); ++i)
    std::printf("%s %.2f at %.0f %.0f %.0f %.0f\n", names[i].c_str(), scores[i], boxes[i][0], boxes[i][1], boxes[i][2],
                boxes[i][3]);
}

template <class Work>
std::string problem_of(Work work) try {  // what went wrong with Python, as one line, or nothing
  return work(), "";
} catch (py::error_already_set& error) {
  return py::str(error.value()).cast<std::string>();
} catch (const std::exception& error) {
  return error.what();
}

int main(int argc, char** argv) {
  if (argc != 2) return std::fprintf(stderr, "usage: detect_embedded MODEL.onnx\n"), 2;
  PyConfig config;
  PyConfig_InitPythonConfig(&config);
  PyConfig_SetBytesString(&config, &config.program_name, PYTHON_EXECUTABLE);  // Python finds the packages that belong to it
  py::scoped_interpreter interpreter(&config);
  py::object predictor;
  std::string problem = problem_of(
      [&] { predictor = py::module_::import("detr_export").attr("Predictor").attr("load")(argv[1], "threads"_a = 1); });

  Frame frame;
  std::atomic<int> finished{0}, ticks{0};
  {
    py::gil_scoped_release released;  // this thread only waits from here on, and must not keep the others from Python
    std::thread clock([&] {           // a thread of the program that never waits for Python
      for (; !finished; ++ticks) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    });
    std::thread detector([&] {
      for (int number = 0; problem.empty() && number < 4; ++number) {
        frame.capture(number);         // without the GIL
        py::gil_scoped_acquire taken;  // for the rest of this round; ONNX Runtime gives it up while the model runs
        const int before = ticks;
        std::printf("frame at %zu\n", reinterpret_cast<std::size_t>(frame.pixels.data()));
        problem = problem_of([&] { detect(predictor, frame); });
        std::printf("%d ticks meanwhile\n", ticks - before);
      }
    });
    detector.join();
    finished = 1;
    clock.join();
  }
  return problem.empty() ? 0 : (std::fprintf(stderr, "error: %s\n", problem.c_str()), 1);
}
