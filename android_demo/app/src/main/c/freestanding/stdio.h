/* All that llama.h and jni.h want of it: a name. The shim is built without a C library. */
#pragma once
typedef struct FILE FILE;
