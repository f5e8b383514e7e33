#include "device.h"

#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

constexpr double SHORTEST_LOOK_S = 0.2; // the kernel counts busy time in steps of 10 ms

std::string stripped(const std::string & text) {
    const char * blank = " \t\r\n\v\f";
    const size_t first = text.find_first_not_of(blank);
    return first == std::string::npos ? "" : text.substr(first, text.find_last_not_of(blank) - first + 1);
}

std::optional<std::string> read_text(const std::string & path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
        return std::nullopt;
    }
    std::stringstream held;
    held << file.rdbuf();
    if (file.bad()) {
        return std::nullopt;
    }
    return stripped(held.str());
}

static Json integer(const std::optional<std::string> & text) {
    if (!text || text->empty()) {
        return nullptr;
    }
    char * end = nullptr;
    errno = 0;
    const long long value = strtoll(text->c_str(), &end, 10);
    return errno || *end ? Json(nullptr) : Json(value);
}

Json read_counters(const std::vector<std::string> & paths) {
    Json values = Json::array();
    for (const std::string & path : paths) {
        values.push_back(integer(read_text(path)));
    }
    return values;
}

Json memory() {
    Json found = Json::object();
    auto take = [&found](const char * path, std::initializer_list<std::pair<const char *, const char *>> fields) {
        std::ifstream file(path);
        for (std::string line; std::getline(file, line);) {
            for (const auto & [name, key] : fields) {
                unsigned long long kilobytes;
                if (line.rfind(std::string(name) + ":", 0) == 0 &&
                    sscanf(line.c_str() + strlen(name) + 1, "%llu kB", &kilobytes) == 1) {
                    found[key] = kilobytes * 1024;
                }
            }
        }
    };
    take("/proc/self/status",
         {{"RssAnon", "rss_anon"}, {"RssFile", "rss_file"}, {"VmHWM", "vm_hwm"}, {"VmSwap", "vm_swap"}});
    take("/proc/self/smaps_rollup", {{"Pss", "pss"}});
    return found;
}

void pin(const Json & job) {
    const std::vector<int> cpus = job.value("cpus", std::vector<int>());
    if (cpus.empty()) {
        return;
    }
    cpu_set_t wanted;
    CPU_ZERO(&wanted);
    bool known = true;
    for (int cpu : cpus) {
        known = known && cpu >= 0 && cpu < CPU_SETSIZE;
        if (known) {
            CPU_SET(cpu, &wanted);
        }
    }
    errno = EINVAL;
    if (!known || sched_setaffinity(0, sizeof wanted, &wanted) != 0) {
        throw JobError("cannot keep to the CPUs " + Json(cpus).dump() + " (" + strerror(errno) +
                       "); name CPUs that this device has");
    }
}

Ticker::Ticker(double interval_s, bool at_once, std::function<void()> work)
    : thread([this, interval_s, at_once, work = std::move(work)] {
          if (at_once) {
              work();
          }
          std::unique_lock<std::mutex> held(lock);
          while (!stopped.wait_for(held, std::chrono::duration<double>(interval_s), [this] { return stop; })) {
              held.unlock();
              work();
              held.lock();
          }
      }) {}

Ticker::~Ticker() {
    {
        std::lock_guard<std::mutex> held(lock);
        stop = true;
    }
    stopped.notify_all();
    thread.join();
}

// Ticks that all cores together were not idle since the start; nothing where the kernel does not say.
static std::optional<long> busy_ticks() {
    std::ifstream file("/proc/stat");
    std::string name;
    long ticks[8], sum = 0; // user nice system idle iowait irq softirq steal
    file >> name;
    for (long & part : ticks) {
        file >> part;
        sum += part;
    }
    return file && name == "cpu" ? std::optional<long>(sum - ticks[3] - ticks[4]) : std::nullopt;
}

static std::vector<std::string> paths(const Json & from, const char * key) {
    return from.value(key, std::vector<std::string>());
}

Stopwatch::Stopwatch(const Json & job) : rails(paths(job, "rails")) {
    const Json watch = job.value("watch", Json::object());
    khz = paths(watch, "khz");
    millicelsius = paths(watch, "millicelsius");
}

void Stopwatch::start() {
    khz_before = read_counters(khz);
    millicelsius_before = read_counters(millicelsius);
    rails_before = read_counters(rails);
    busy = busy_ticks();
    cpu = cpu_seconds();
    began = now();
}

Json Stopwatch::stop() const {
    const double seconds = now() - began, cpu_s = cpu_seconds() - cpu;
    const std::optional<long> later = busy_ticks();
    const Json rails_after = read_counters(rails);
    Json others = nullptr;
    if (busy && later && seconds >= SHORTEST_LOOK_S) {
        others = std::max(0.0, (double(*later - *busy) / double(sysconf(_SC_CLK_TCK)) - cpu_s) / seconds);
    }
    return {
        {"seconds", seconds},
        {"cpu_s", cpu_s},
        {"others_cores", others},
        {"watch",
         {{"khz", {khz_before, read_counters(khz)}},
          {"millicelsius", {millicelsius_before, read_counters(millicelsius)}}}},
        {"rails", {rails_before, rails_after}},
    };
}
