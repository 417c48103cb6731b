// A double of TensorRT 10: only what detr_tensorrt.hpp uses, with the same declarations. Tests decide how it behaves,
// through control.hpp. The plan of its engines is a JSON text, see make_fake_engine.py.
#ifndef NV_INFER_H
#define NV_INFER_H

#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda_runtime_api.h"

#define NV_TENSORRT_MAJOR 10

extern "C" std::int32_t getInferLibVersion() noexcept;

namespace nvinfer1 {

class Dims64 {
 public:
    static constexpr std::int32_t MAX_DIMS{8};
    std::int32_t nbDims;
    std::int64_t d[MAX_DIMS];
};
using Dims = Dims64;

enum class DataType : std::int32_t { kFLOAT = 0, kHALF = 1, kINT8 = 2, kINT32 = 3, kBOOL = 4, kUINT8 = 5, kINT64 = 8 };
enum class TensorIOMode : std::int32_t { kNONE = 0, kINPUT = 1, kOUTPUT = 2 };
enum class OptProfileSelector : std::int32_t { kMIN = 0, kOPT = 1, kMAX = 2 };
enum class ExecutionContextAllocationStrategy : std::int32_t { kSTATIC = 0 };

class ILogger {
 public:
    enum class Severity : std::int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2, kINFO = 3, kVERBOSE = 4 };
    virtual void log(Severity severity, char const* msg) noexcept = 0;
    virtual ~ILogger() = default;
};

class IExecutionContext {
 public:
    virtual ~IExecutionContext() noexcept;
    bool setOptimizationProfileAsync(std::int32_t profileIndex, cudaStream_t stream) noexcept;
    bool setInputShape(char const* tensorName, Dims const& dims) noexcept;
    Dims getTensorShape(char const* tensorName) const noexcept;
    bool setTensorAddress(char const* tensorName, void* data) noexcept;
    bool enqueueV3(cudaStream_t stream) noexcept;

    struct Implementation;
    std::unique_ptr<Implementation> implementation;
};

class ICudaEngine {
 public:
    virtual ~ICudaEngine() noexcept;
    IExecutionContext* createExecutionContext(
        ExecutionContextAllocationStrategy strategy = ExecutionContextAllocationStrategy::kSTATIC) noexcept;
    std::int32_t getNbIOTensors() const noexcept;
    char const* getIOTensorName(std::int32_t index) const noexcept;
    DataType getTensorDataType(char const* tensorName) const noexcept;
    TensorIOMode getTensorIOMode(char const* tensorName) const noexcept;
    std::int32_t getNbOptimizationProfiles() const noexcept;
    Dims getProfileShape(char const* tensorName, std::int32_t profileIndex, OptProfileSelector select) const noexcept;

    struct Implementation;
    std::unique_ptr<Implementation> implementation;
};

class IRuntime {
 public:
    virtual ~IRuntime() noexcept;
    void setEngineHostCodeAllowed(bool allowed) noexcept;
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept;

    ILogger* logger = nullptr;
    bool host_code = false;
};

IRuntime* createInferRuntime(ILogger& logger) noexcept;

}  // namespace nvinfer1

#endif
