#include "engine.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <sstream>

constexpr int BATCH = 512;    // ids decoded at once, llama.cpp's default physical batch
constexpr uint32_t POLL = 50; // how long idle threads of a timed run spin before they sleep, llama.cpp's default

static const std::map<std::string, llama_flash_attn_type> FLASH = {
    {"auto", LLAMA_FLASH_ATTN_TYPE_AUTO},
    {"off", LLAMA_FLASH_ATTN_TYPE_DISABLED},
    {"on", LLAMA_FLASH_ATTN_TYPE_ENABLED},
};
static const std::map<std::string, ggml_type> KV = {{"f16", GGML_TYPE_F16}, {"f32", GGML_TYPE_F32}};

// llama.cpp's last complaint, for error sentences, and what it said of its cache.
static std::string complaint = "no reason given";
static double kv_mebibytes = 0;

static void listen(ggml_log_level level, const char * text, void *) {
    static ggml_log_level last = GGML_LOG_LEVEL_NONE;
    last = level == GGML_LOG_LEVEL_CONT ? last : level;
    std::string line(text);
    line.erase(line.find_last_not_of(" \n") + 1);
    if (const size_t at = line.find("llama_kv_cache: size ="); at != std::string::npos) {
        sscanf(line.c_str() + at, "llama_kv_cache: size = %lf MiB", &kv_mebibytes);
    }
    if (line.empty() || (last != GGML_LOG_LEVEL_WARN && last != GGML_LOG_LEVEL_ERROR)) {
        return;
    }
    complaint = line;
    if (last == GGML_LOG_LEVEL_ERROR) {
        fprintf(stderr, "%s\n", line.c_str());
    }
}

template <typename T>
static T choice(const std::map<std::string, T> & table, const Json & job, const char * key, const char * usual) {
    const std::string name = job.value(key, usual);
    const auto found = table.find(name);
    if (found == table.end()) {
        throw JobError(std::string("the job's '") + key + "' is '" + name + "', which this worker does not know");
    }
    return found->second;
}

Engine::Engine(Desk & desk) {
    const Json & job = desk.job;
    context = job.at("context");
    threads = job.at("threads");
    if (context < 1 || threads < 1) {
        throw JobError("a job needs a context and threads of at least 1");
    }
    llama_log_set(listen, nullptr);
    const double start = now();
    llama_backend_init();
    load(job);
    load_s = now() - start;
    cache = llama_get_memory(ctx);
    vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model));
    batch = llama_batch_init(BATCH, 0, 1);
    kv_cache_bytes = kv_mebibytes > 0 ? Json(std::llround(kv_mebibytes * (1 << 20))) : Json(nullptr);
    describe(job);
}

void Engine::load(const Json & job) {
    const std::string name = job.at("name"), path = job.at("model"), task = job.at("task");
    llama_model_params of_model = llama_model_default_params();
    of_model.n_gpu_layers = 0;
    of_model.load_mode = LLAMA_LOAD_MODE_MMAP;
    of_model.use_extra_bufts = job.value("use_extra_bufts", true);
    model = llama_model_load_from_file(path.c_str(), of_model);
    if (!model) {
        throw JobError("llama.cpp cannot load " + name + ": " + complaint);
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = uint32_t(context);
    params.n_batch = params.n_ubatch = uint32_t(std::min(BATCH, context));
    params.n_threads = params.n_threads_batch = threads;
    params.flash_attn_type = choice(FLASH, job, "flash_attention", "auto");
    params.type_k = params.type_v = choice(KV, job, "kv", "f16");
    if (task == "score") { // a whole window's logits at once
        params.n_outputs_max = params.n_outputs_max_per_seq = params.n_batch;
    }
    params.offload_kqv = params.op_offload = false;
    ctx = llama_init_from_model(model, params);
    if (!ctx) {
        throw JobError("llama.cpp cannot make a context of " + std::to_string(context) + " for " + name + ": " +
                       complaint);
    }
    // threads that live from one call to the next; without OpenMP ggml would start them anew for every token
    ggml_threadpool_params pool = ggml_threadpool_params_default(threads);
    pool.poll = task == "bench" || task == "energy" ? POLL : 0; // untimed work shares its cores politely
    llama_attach_threadpool(ctx, ggml_threadpool_new(&pool), nullptr);
}

void Engine::describe(const Json & job) {
    Json features = Json::array(); // of "CPU : NEON = 1 | ARM_FMA = 1 | "
    std::stringstream said(llama_print_system_info());
    for (std::string item; std::getline(said, item, '|');) {
        if (const size_t end = item.find(" = 1"); end != std::string::npos) {
            const size_t blank = item.rfind(' ', end - 1); // before the name
            features.push_back(item.substr(blank + 1, end - blank - 1));
        }
    }
    // as the file states it, else the embedding shared by the heads: the two need not agree
    const std::string stated = value(value("general.architecture") + ".attention.key_length");
    const int heads = std::max(1, llama_model_n_head(model));
    const std::string kv = job.value("kv", "f16");
    info = {
        {"runtime", "llama.cpp"},
        {"version", std::string(llama_version()) + " (native worker, " EDGESLM_SOURCE ")"},
        {"target", EDGESLM_TARGET},
        {"features", features},
        {"threads", threads},
        {"context", context},
        {"kv", kv},
        {"flash_attention", job.value("flash_attention", "auto")},
        {"mmap", true},
        {"use_extra_bufts", job.value("use_extra_bufts", true)},
        {"layers", llama_model_n_layer(model)},
        {"kv_heads", llama_model_n_head_kv(model)},
        {"head_dim", stated.empty() ? llama_model_n_embd(model) / heads : atoi(stated.c_str())},
        {"kv_element_bytes", kv == "f32" ? 4 : 2},
        {"vocabulary", vocabulary},
    };
}

// A metadata value of the file as text; empty when it has none.
std::string Engine::value(const std::string & key) const {
    char text[256];
    return llama_model_meta_val_str(model, key.c_str(), text, sizeof text) >= 0 ? text : "";
}

// Appends up to BATCH ids -> float [m, V], logits of those from `wanted_from` on, valid until the next call.
const float * Engine::decode(const int32_t * ids, int count, int wanted_from) {
    if (length + count > context) {
        throw JobError(std::to_string(length + count) + " ids do not fit the context of " + std::to_string(context));
    }
    batch.n_tokens = count;
    for (int i = 0; i < count; i++) {
        batch.token[i] = ids[i];
        batch.pos[i] = length + i;
        batch.n_seq_id[i] = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i] = i >= wanted_from;
    }
    if (const int status = llama_decode(ctx, batch); status != 0) {
        throw JobError("llama.cpp stopped with status " + std::to_string(status) + ": " + complaint);
    }
    length += count;
    return wanted_from < count ? llama_get_logits(ctx) : nullptr;
}

const float * Engine::feed(const int32_t * ids, int count) {
    const float * last = nullptr;
    for (int start = 0; start < count; start += BATCH) {
        const int size = std::min(BATCH, count - start);
        last = decode(ids + start, size, start + size == count ? size - 1 : size);
    }
    return last;
}

void Engine::keep(int count) {
    if (count == 0) {
        llama_memory_clear(cache, false);
    } else if (count < length && !llama_memory_seq_rm(cache, 0, count, -1)) {
        throw JobError("llama.cpp could not cut the sequence back");
    }
    length = std::min(count, length);
}

void Engine::score(const int32_t * ids, int count, int first, const std::function<void(const float *, int)> & take) {
    keep(0);
    for (int start = 0; start < count; start += BATCH) {
        const int size = std::min(BATCH, count - start), from = std::max(0, first - start);
        if (const float * rows = decode(ids + start, size, from)) {
            take(rows, size - from);
        }
    }
}

int32_t argmax(const float * values, int count) {
    constexpr int LANES = 16; // the compiler turns them into vectors; a single maximum would be one long chain
    float best[LANES];
    std::fill(best, best + LANES, -INFINITY);
    int i = 0;
    for (; i + LANES <= count; i += LANES) {
        for (int k = 0; k < LANES; k++) {
            best[k] = values[i + k] > best[k] ? values[i + k] : best[k];
        }
    }
    float greatest = *std::max_element(best, best + LANES);
    for (; i < count; i++) {
        greatest = std::max(greatest, values[i]);
    }
    return int32_t(std::min<long>(std::find(values, values + count, greatest) - values, count - 1));
}
