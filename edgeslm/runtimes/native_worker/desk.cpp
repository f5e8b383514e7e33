#include "desk.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <thread>

static double seconds_of(clockid_t clock) {
    timespec at;
    clock_gettime(clock, &at);
    return double(at.tv_sec) + 1e-9 * double(at.tv_nsec);
}

double now() {
    return seconds_of(CLOCK_MONOTONIC);
}
double cpu_seconds() {
    return seconds_of(CLOCK_PROCESS_CPUTIME_ID);
}
double wall_minus_monotonic() {
    return seconds_of(CLOCK_REALTIME) - now();
}

static void write_all(int file, const std::string & bytes) {
    for (size_t at = 0; at < bytes.size();) {
        const ssize_t wrote = write(file, bytes.data() + at, bytes.size() - at);
        if (wrote < 0 && errno != EINTR) {
            throw JobError(std::string("cannot write (") + strerror(errno) + "); make room on the device");
        }
        at += wrote > 0 ? size_t(wrote) : 0;
    }
}

void write_atomically(const std::string & path, const std::string & bytes) {
    const std::string part = path + ".part";
    const int file = open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file < 0) {
        throw JobError(std::string("cannot write beside the job (") + strerror(errno) + ")");
    }
    write_all(file, bytes);
    close(file);
    if (rename(part.c_str(), path.c_str()) != 0) {
        throw JobError(std::string("cannot write beside the job (") + strerror(errno) + ")");
    }
}

static std::string text(const Json & document) {
    return document.dump(-1, ' ', false, Json::error_handler_t::replace); // what a sensor says need not be UTF-8
}

Desk::Desk(const std::string & job_path) : path(job_path) {
    const size_t slash = path.rfind('/');
    folder = slash == std::string::npos ? "." : path.substr(0, slash);
    out = fcntl(1, F_DUPFD_CLOEXEC, 3);
    dup2(2, 1);
}

void Desk::read() {
    std::ifstream file(path);
    job = Json::parse(file, nullptr, false);
    if (!job.is_object()) {
        throw JobError("the job file is missing or no JSON object; push it again");
    }
}

void Desk::say(const Json & document) {
    write_all(out, text(document) + "\n");
}

void Desk::progress(long done, long total) {
    if (done == total || now() - said > 0.1) {
        said = now();
        say({{"progress", {done, total}}});
    }
}

void Desk::save_result(const Json & result) const {
    write_atomically(beside("result.json"), text(result));
}

void leave_when_stdin_closes() {
    std::thread([] {
        char heard[4096];
        ssize_t count;
        do {
            count = read(0, heard, sizeof heard);
        } while (count > 0 || (count < 0 && errno == EINTR));
        _exit(3);
    }).detach();
}

void on_threads(int threads, const std::function<void(int)> & work) {
    std::vector<std::thread> pool;
    for (int i = 1; i < threads; i++) {
        pool.emplace_back(work, i);
    }
    work(0);
    for (std::thread & thread : pool) {
        thread.join();
    }
}
