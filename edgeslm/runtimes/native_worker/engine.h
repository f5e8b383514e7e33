// A GGUF file in llama.cpp: the same options, batches and words as workers/llama_cpp_worker.py.
#pragma once

#include "desk.h"

#include <llama.h>

#include <functional>
#include <optional>

class Engine {
public:
    explicit Engine(Desk & desk); // raises JobError

    // Appends ids to the sequence -> float [V], logits of the last position, valid until the next call.
    const float * feed(const int32_t * ids, int count);
    const float * feed(int32_t id) { return feed(&id, 1); }
    void keep(int count); // cuts the sequence back to its first ids
    // A fresh sequence: take(rows [m, V], m) for logits of positions `first` .. count - 1, block by block.
    void score(const int32_t * ids, int count, int first, const std::function<void(const float *, int)> & take);

    int vocabulary = 0, context = 0, threads = 1;
    double load_s = 0; // from the call to a model that can run
    Json info;
    Json kv_cache_bytes; // as llama.cpp says it allocated them, null when it does not

private:
    const float * decode(const int32_t * ids, int count, int wanted_from);
    void load(const Json & job);
    void describe(const Json & job);
    std::string value(const std::string & key) const;

    llama_model * model = nullptr;
    llama_context * ctx = nullptr;
    llama_memory_t cache = nullptr;
    llama_batch batch{};
    int length = 0;
};

int32_t argmax(const float * values, int count); // the first of the greatest, as numpy has it
