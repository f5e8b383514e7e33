/* llama.cpp for Java: a thin layer without a thought of its own. Everything that decides lies in Java (org.edgeslm.core).
 *
 * Built without a C library (-ffreestanding -nostdlib): it calls nothing but llama.h and the JNI table, so it can be
 * cross-compiled by any clang or gcc, without the Android NDK. It is compiled against the headers of the very library
 * that it will be loaded with; struct layouts differ between releases of llama.cpp.
 *
 * Handles are pointers in a jlong. Texts are UTF-8 bytes, never Java's modified UTF-8. A call that cannot be done
 * returns 0, a negative number or llama.cpp's own status, never throws, and `complaint` then has llama.cpp's last
 * warning or error.
 */
#include <jni.h>
#include <stddef.h>
#include <stdint.h>

#include "llama.h"

#define API(type, name) JNIEXPORT type JNICALL Java_org_edgeslm_core_Native_##name
#define BATCH 512 /* ids decoded at once, llama.cpp's default physical batch */

enum { WARN = 3, ERROR = 4, CONTINUED = 5 }; /* enum ggml_log_level */

static char complaint_text[512];
static volatile int stopping;

/* Compilers may call these for copies of structs, whatever they are told. */
__attribute__((visibility("hidden"))) void *memcpy(void *to, const void *from, size_t n) {
    volatile unsigned char *a = to;
    const unsigned char *b = from;
    while (n--) *a++ = *b++;
    return to;
}

__attribute__((visibility("hidden"))) void *memset(void *to, int value, size_t n) {
    volatile unsigned char *a = to;
    while (n--) *a++ = (unsigned char)value;
    return to;
}

static int length_of(const char *text, int limit) {
    int n = 0;
    while (n < limit && text[n]) n++;
    return n;
}

static int copy_out(JNIEnv *env, const char *text, jbyteArray out) {
    int n = length_of(text, (*env)->GetArrayLength(env, out));
    (*env)->SetByteArrayRegion(env, out, 0, n, (const jbyte *)text);
    return n;
}

/* Keeps the last warning or error; a line may come in pieces. */
static void listen(int level, const char *text, void *user) {
    static int last;
    (void)user;
    int goes_on = level == CONTINUED;
    last = goes_on ? last : level;
    if (last != WARN && last != ERROR) return;
    int at = goes_on ? length_of(complaint_text, sizeof complaint_text - 1) : 0;
    while (*text && at < (int)sizeof complaint_text - 1) complaint_text[at++] = *text++;
    complaint_text[at] = 0;
}

static _Bool told_to_stop(void *user) {
    (void)user;
    return stopping != 0;
}

JNIEXPORT jint JNICALL JNI_OnLoad(JavaVM *vm, void *reserved) {
    (void)vm;
    (void)reserved;
    llama_log_set((void *)listen, NULL);
    llama_backend_init();
    return JNI_VERSION_1_6;
}

API(jlong, open)(JNIEnv *env, jclass type, jbyteArray path) {
    (void)type;
    complaint_text[0] = 0;
    jbyte *name = (*env)->GetByteArrayElements(env, path, NULL); /* ends with a 0 */
    if (!name) return 0;
    struct llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = 0;
    struct llama_model *model = llama_model_load_from_file((const char *)name, params);
    (*env)->ReleaseByteArrayElements(env, path, name, JNI_ABORT);
    return (jlong)(intptr_t)model;
}

API(void, close)(JNIEnv *env, jclass type, jlong model) {
    (void)env, (void)type;
    llama_model_free((struct llama_model *)(intptr_t)model);
}

API(jlong, begin)(JNIEnv *env, jclass type, jlong model, jint context, jint threads) {
    (void)env, (void)type;
    complaint_text[0] = 0;
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = (uint32_t)context;
    params.n_batch = params.n_ubatch = (uint32_t)(context < BATCH ? context : BATCH);
    params.n_threads = params.n_threads_batch = threads;
    params.offload_kqv = params.op_offload = 0;
    params.abort_callback = told_to_stop;
    return (jlong)(intptr_t)llama_init_from_model((struct llama_model *)(intptr_t)model, params);
}

API(void, end)(JNIEnv *env, jclass type, jlong ctx) {
    (void)env, (void)type;
    llama_free((struct llama_context *)(intptr_t)ctx);
}

API(jint, vocabulary)(JNIEnv *env, jclass type, jlong model) {
    (void)env, (void)type;
    return llama_vocab_n_tokens(llama_model_get_vocab((const struct llama_model *)(intptr_t)model));
}

/* Appends ids[from .. from + count) to the sequence, count at most BATCH -> llama_decode's status. */
API(jint, decode)(JNIEnv *env, jclass type, jlong ctx, jintArray ids, jint from, jint count) {
    (void)type;
    static llama_token piece[BATCH]; /* one thread decodes; Java holds the lock */
    if (count < 1 || count > BATCH) return -100;
    (*env)->GetIntArrayRegion(env, ids, from, count, (jint *)piece);
    if ((*env)->ExceptionCheck(env)) return -101;
    complaint_text[0] = 0;
    return llama_decode((struct llama_context *)(intptr_t)ctx, llama_batch_get_one(piece, count));
}

/* The id with the largest logit after the last decode, the first of equals as numpy's argmax. -1: nothing decoded. */
API(jint, greedy)(JNIEnv *env, jclass type, jlong ctx, jint vocabulary) {
    (void)env, (void)type;
    const float *logits = llama_get_logits_ith((struct llama_context *)(intptr_t)ctx, -1);
    if (!logits) return -1;
    jint best = 0;
    for (jint i = 1; i < vocabulary; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

API(jboolean, logits)(JNIEnv *env, jclass type, jlong ctx, jfloatArray out) {
    (void)type;
    const float *logits = llama_get_logits_ith((struct llama_context *)(intptr_t)ctx, -1);
    if (!logits) return JNI_FALSE;
    (*env)->SetFloatArrayRegion(env, out, 0, (*env)->GetArrayLength(env, out), logits);
    return JNI_TRUE;
}

/* Cuts the sequence back to its first n ids. */
API(jboolean, keep)(JNIEnv *env, jclass type, jlong ctx, jint n) {
    (void)env, (void)type;
    llama_memory_t memory = llama_get_memory((const struct llama_context *)(intptr_t)ctx);
    if (n == 0) {
        llama_memory_clear(memory, 0);
        return JNI_TRUE;
    }
    return llama_memory_seq_rm(memory, 0, n, -1);
}

/* Ids of a text, special tokens found in it, none added -> their number; negative: that many do not fit into `out`. */
API(jint, tokenize)(JNIEnv *env, jclass type, jlong model, jbyteArray text, jint length, jintArray out) {
    (void)type;
    const struct llama_vocab *vocab = llama_model_get_vocab((const struct llama_model *)(intptr_t)model);
    jint room = (*env)->GetArrayLength(env, out);
    if (length > (*env)->GetArrayLength(env, text)) return 0;
    jbyte *bytes = (*env)->GetByteArrayElements(env, text, NULL);
    jint *ids = (*env)->GetIntArrayElements(env, out, NULL);
    jint count = 0;
    if (bytes && ids) count = llama_tokenize(vocab, (const char *)bytes, length, ids, room, 0, 1);
    if (ids) (*env)->ReleaseIntArrayElements(env, out, ids, 0);
    if (bytes) (*env)->ReleaseByteArrayElements(env, text, bytes, JNI_ABORT);
    return count;
}

/* Bytes of one id, none for control tokens; `blanks` leading ones are dropped -> their number, negative as above. */
API(jint, piece)(JNIEnv *env, jclass type, jlong model, jint id, jbyteArray out, jint blanks) {
    (void)type;
    const struct llama_vocab *vocab = llama_model_get_vocab((const struct llama_model *)(intptr_t)model);
    jint room = (*env)->GetArrayLength(env, out);
    jbyte *bytes = (*env)->GetByteArrayElements(env, out, NULL);
    if (!bytes) return 0;
    jint count = llama_token_to_piece(vocab, id, (char *)bytes, room, blanks, 0);
    (*env)->ReleaseByteArrayElements(env, out, bytes, 0);
    return count;
}

/* From another thread: a decode that runs ends with status 2 as soon as it can. */
API(void, stop)(JNIEnv *env, jclass type, jboolean now) {
    (void)env, (void)type;
    stopping = now;
}

API(jint, complaint)(JNIEnv *env, jclass type, jbyteArray out) {
    (void)type;
    return copy_out(env, complaint_text, out);
}

/* Instruction sets that the library was built for and found. */
API(jint, about)(JNIEnv *env, jclass type, jbyteArray out) {
    (void)type;
    return copy_out(env, llama_print_system_info(), out);
}
