# Included right after project(llama_cpp) through CMAKE_PROJECT_llama_cpp_INCLUDE.
# llama-cpp-python forces LLAMA_BUILD_COMMON on in the cache; a normal variable wins over it (policy CMP0126),
# and nothing this project calls lives in the common library.
set(LLAMA_BUILD_COMMON OFF)
# libllama only builds graphs and reads vocabularies; all arithmetic is in ggml, which keeps -O3.
add_compile_options("$<$<STREQUAL:$<TARGET_PROPERTY:NAME>,llama>:-O1>")
# ggml's AMX kernels crashed at the first evaluation of a Q4_0 model (llama.cpp 0.5.0); without these macros
# ggml keeps its AVX-512 VNNI kernels on the same CPU. Elsewhere the macros are not defined and this does nothing.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND NOT MSVC)
  add_compile_options(-U__AMX_TILE__ -U__AMX_INT8__ -U__AMX_BF16__)
endif()
