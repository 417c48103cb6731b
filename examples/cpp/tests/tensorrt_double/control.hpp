// How a test controls the double, and what it sees of it.
#pragma once

#include <atomic>
#include <string>

namespace tensorrt_double {

inline std::string fail_at;   // the call of this name fails; empty: none
inline int version = 100300;  // of the library: 10.3.0
inline int capability_major = 8, capability_minor = 9;
inline std::atomic<int> live{0};            // runtimes, engines, contexts, streams and blocks of memory that exist
inline std::atomic<int> allocations{0};     // calls of cudaMalloc
inline std::atomic<int> profile{-1};        // that was set last
inline std::atomic<bool> host_code{false};  // whether the last runtime was allowed to run an engine's code
constexpr int devices = 2;

}  // namespace tensorrt_double
