// Marks for code that g++ compiles for the host and nvcc for both sides. The protocol is written
// once (token/comm/protocol.hpp) and must mean the same on a CPU rank and in a CUDA kernel.
#pragma once

#if defined(__CUDACC__)
#define TOKEN_HOST_DEVICE __host__ __device__
#else
#define TOKEN_HOST_DEVICE
#endif

// Marks device code that a test also compiles for the host: nvcc sees a device function, g++ an
// ordinary one.
#if defined(__CUDACC__)
#define TOKEN_DEVICE __device__ __forceinline__
#else
#define TOKEN_DEVICE inline
#endif

// Forces a copy into every caller. Needed in files compiled for a wider instruction set: an
// ordinary inline function compiled there could be the copy the linker keeps for everybody, and an
// old CPU would meet an AVX-512 instruction in a function that has nothing to do with it.
#define TOKEN_INLINE inline __attribute__((always_inline))
