// A program that finds an ONNX Runtime older than its headers: this test brings one that has no interface at all.
#include "check.hpp"

extern "C" const OrtApiBase* ORT_API_CALL OrtGetApiBase() noexcept {
    static const OrtApiBase base{[](std::uint32_t) noexcept -> const OrtApi* { return nullptr; },
                                 []() noexcept -> const char* { return "1.2.0"; }};
    return &base;
}

int main() {
    for (int attempt = 0; attempt < 2; ++attempt)
        CHECK_ERROR(runtime, ({"ONNX Runtime 1." + std::to_string(ORT_API_VERSION), "found 1.2.0", "install"}),
                    detr::Model("any.onnx"));
    return check::finish();
}
