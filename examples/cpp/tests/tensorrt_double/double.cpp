// The double's behaviour. Its engines compute what make_fake_model.py describes.
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "NvInfer.h"
#include "control.hpp"

using namespace tensorrt_double;

struct CUstream_st {
    std::vector<std::function<void()>> work;
    int device;
};

namespace {

thread_local int current_device = 0;

bool fails(const char* call) { return fail_at == call; }

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory"
           : error == cudaErrorInvalidDevice  ? "invalid device ordinal"
                                              : "unknown";
}

cudaError_t cudaGetDevice(int* device) {
    *device = current_device;
    return fails("cudaGetDevice") ? cudaErrorUnknown : cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= devices) return cudaErrorInvalidDevice;
    current_device = device;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    *value = attribute == cudaDevAttrComputeCapabilityMajor ? capability_major : capability_minor;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void** address, std::size_t size) {
    if (fails("cudaMalloc")) return cudaErrorMemoryAllocation;
    *address = std::malloc(size);
    ++live;
    ++allocations;
    return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
    if (address != nullptr) --live;
    std::free(address);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
    if (fails("cudaStreamCreateWithFlags")) return cudaErrorUnknown;
    *stream = new CUstream_st{{}, current_device};
    ++live;
    return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    if (current_device != stream->device) std::abort();  // the program forgot which GPU it works on
    delete stream;
    --live;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (current_device != stream->device) std::abort();
    for (const auto& step : std::exchange(stream->work, {})) step();
    return fails("cudaStreamSynchronize") ? cudaErrorUnknown : cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t count, cudaMemcpyKind, cudaStream_t stream) {
    if (fails("cudaMemcpyAsync")) return cudaErrorUnknown;
    stream->work.push_back([=] { std::memcpy(to, from, count); });
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void* to, std::size_t to_pitch, const void* from, std::size_t from_pitch, std::size_t width,
                              std::size_t height, cudaMemcpyKind, cudaStream_t stream) {
    if (fails("cudaMemcpy2DAsync")) return cudaErrorUnknown;
    stream->work.push_back([=] {
        for (std::size_t row = 0; row < height; ++row)
            std::memcpy(static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width);
    });
    return cudaSuccess;
}

std::int32_t getInferLibVersion() noexcept { return version; }

namespace nvinfer1 {

// A plan: {"profiles": [[MIN, OPT, MAX], ...], "tensors": {name: type}, "host_code": bool, "box_size": 4}
struct ICudaEngine::Implementation {
    nlohmann::json plan;
    ILogger* logger;
    std::vector<std::string> names;

    bool fail(const char* call) const {
        if (!fails(call)) return false;
        logger->log(ILogger::Severity::kWARNING, "this is only a warning");
        logger->log(ILogger::Severity::kERROR, (std::string(call) + " failed as it was told to").c_str());
        return true;
    }
};

struct IExecutionContext::Implementation {
    const ICudaEngine::Implementation* engine;
    std::int32_t profile = 0;
    Dims image{4, {-1, -1, -1, 3}};
    std::map<std::string, void*> addresses;
};

namespace {

Dims dims(const nlohmann::json& sizes) {
    Dims result{};
    result.nbDims = static_cast<std::int32_t>(sizes.size());
    for (std::size_t axis = 0; axis < sizes.size(); ++axis) result.d[axis] = sizes[axis].get<std::int64_t>();
    return result;
}

// What make_fake_model.py computes, from arrays on "the GPU".
void compute(const std::map<std::string, void*>& addresses, Dims image, bool narrow, bool masks) {
    const auto* pixels = static_cast<const std::uint8_t*>(addresses.at("image"));
    const auto bytes = static_cast<std::size_t>(image.d[1] * image.d[2] * 3);
    const float all_scores[] = {0.9F, 0.6F, 0.3F}, mask[] = {0.25F, 0.5F, 0.75F, 0, 0, 0};
    const std::int64_t all_labels[] = {1, 0, 7};
    for (std::size_t index = 0; index < static_cast<std::size_t>(image.d[0]); ++index, pixels += bytes) {
        float sum = 0;
        for (std::size_t byte = 0; byte < bytes; ++byte) sum += pixels[byte];
        for (std::size_t k = 0; k < 3; ++k) {
            const std::size_t at = 3 * index + k;
            const float step = static_cast<float>(k);
            static_cast<float*>(addresses.at("scores"))[at] = all_scores[k];
            if (narrow)
                static_cast<std::int32_t*>(addresses.at("labels"))[at] = static_cast<std::int32_t>(all_labels[k]);
            else
                static_cast<std::int64_t*>(addresses.at("labels"))[at] = all_labels[k];
            float* box = static_cast<float*>(addresses.at("boxes")) + 4 * at;
            box[0] = sum + step;
            box[1] = static_cast<float>(pixels[0]) + step;
            box[2] = static_cast<float>(image.d[2]) + step;
            box[3] = static_cast<float>(image.d[1]) + step;
            for (std::size_t cell = 0; masks && cell < 6; ++cell)
                static_cast<float*>(addresses.at("masks"))[6 * at + cell] = mask[cell] + step;
        }
    }
}

}  // namespace

IExecutionContext::~IExecutionContext() noexcept { --live; }

bool IExecutionContext::setOptimizationProfileAsync(std::int32_t number, cudaStream_t) noexcept {
    if (implementation->engine->fail("setOptimizationProfileAsync")) return false;
    implementation->profile = number;
    profile = number;
    return true;
}

bool IExecutionContext::setInputShape(char const* tensorName, Dims const& size) noexcept {
    if (implementation->engine->fail("setInputShape") || std::string(tensorName) != "image" || size.nbDims != 4)
        return false;
    const auto& limits = implementation->engine->plan["profiles"][static_cast<std::size_t>(implementation->profile)];
    const Dims low = dims(limits[0]), high = dims(limits[2]);
    for (int axis = 0; axis < 4; ++axis)
        if (size.d[axis] < low.d[axis] || size.d[axis] > high.d[axis]) return false;
    implementation->image = size;
    return true;
}

Dims IExecutionContext::getTensorShape(char const* tensorName) const noexcept {
    const std::string name = tensorName;
    const std::int64_t batch = implementation->image.d[0],
                       box = implementation->engine->plan["box_size"].get<std::int64_t>();
    if (name == "image") return implementation->image;
    if (name == "boxes") return {3, {batch, 3, box}};
    if (name == "masks") return {4, {batch, 3, 2, 3}};
    return {2, {batch, 3}};
}

bool IExecutionContext::setTensorAddress(char const* tensorName, void* data) noexcept {
    if (implementation->engine->fail("setTensorAddress")) return false;
    implementation->addresses[tensorName] = data;
    return true;
}

bool IExecutionContext::enqueueV3(cudaStream_t stream) noexcept {
    const auto& tensors = implementation->engine->plan["tensors"];
    if (implementation->engine->fail("enqueueV3") || implementation->addresses.size() != tensors.size()) return false;
    stream->work.push_back([addresses = implementation->addresses, image = implementation->image,
                            narrow = tensors["labels"] == "int32",
                            masks = tensors.contains("masks")] { compute(addresses, image, narrow, masks); });
    return true;
}

ICudaEngine::~ICudaEngine() noexcept { --live; }

IExecutionContext* ICudaEngine::createExecutionContext(ExecutionContextAllocationStrategy) noexcept {
    if (implementation->fail("createExecutionContext")) return nullptr;
    auto* context = new IExecutionContext;
    context->implementation = std::make_unique<IExecutionContext::Implementation>();
    context->implementation->engine = implementation.get();
    ++live;
    return context;
}

std::int32_t ICudaEngine::getNbIOTensors() const noexcept { return static_cast<std::int32_t>(implementation->names.size()); }

char const* ICudaEngine::getIOTensorName(std::int32_t index) const noexcept {
    return implementation->names[static_cast<std::size_t>(index)].c_str();
}

DataType ICudaEngine::getTensorDataType(char const* tensorName) const noexcept {
    const auto type = implementation->plan["tensors"][tensorName].get<std::string>();
    if (type == "uint8") return DataType::kUINT8;
    if (type == "int64") return DataType::kINT64;
    if (type == "int32") return DataType::kINT32;
    return type == "float16" ? DataType::kHALF : DataType::kFLOAT;
}

TensorIOMode ICudaEngine::getTensorIOMode(char const* tensorName) const noexcept {
    return std::string(tensorName) == "image" ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
}

std::int32_t ICudaEngine::getNbOptimizationProfiles() const noexcept {
    return static_cast<std::int32_t>(implementation->plan["profiles"].size());
}

Dims ICudaEngine::getProfileShape(char const*, std::int32_t profileIndex, OptProfileSelector select) const noexcept {
    return dims(implementation->plan["profiles"][static_cast<std::size_t>(profileIndex)][static_cast<std::size_t>(select)]);
}

IRuntime::~IRuntime() noexcept { --live; }

void IRuntime::setEngineHostCodeAllowed(bool allowed) noexcept { host_code = tensorrt_double::host_code = allowed; }

ICudaEngine* IRuntime::deserializeCudaEngine(void const* blob, std::size_t size) noexcept {
    auto made = std::make_unique<ICudaEngine::Implementation>();
    made->plan = nlohmann::json::parse(std::string(static_cast<const char*>(blob), size), nullptr, false);
    made->logger = logger;
    if (made->plan.is_discarded()) {
        logger->log(ILogger::Severity::kINTERNAL_ERROR, "the magic tag does not match");
        return nullptr;
    }
    if (made->plan["host_code"].get<bool>() && !host_code) {
        logger->log(ILogger::Severity::kERROR, "the engine contains host code, which is not allowed");
        return nullptr;
    }
    for (const auto& [name, type] : made->plan["tensors"].items()) made->names.push_back(name);
    auto* engine = new ICudaEngine;
    engine->implementation = std::move(made);
    ++live;
    return engine;
}

IRuntime* createInferRuntime(ILogger& logger) noexcept {
    if (fails("createInferRuntime")) {
        logger.log(ILogger::Severity::kERROR, "CUDA initialization failure");
        return nullptr;
    }
    auto* runtime = new IRuntime;
    runtime->logger = &logger;
    host_code = false;
    ++live;
    return runtime;
}

}  // namespace nvinfer1
