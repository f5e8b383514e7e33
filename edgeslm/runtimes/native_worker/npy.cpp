#include "npy.h"

#include "desk.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <regex>

static const std::string MAGIC("\x93NUMPY\x01\x00", 8);

static std::string header(const std::string & descr, const std::string & shape) {
    std::string words = "{'descr': '" + descr + "', 'fortran_order': False, 'shape': (" + shape + "), }";
    words.append(63 - (MAGIC.size() + 2 + words.size()) % 64, ' '); // the data begins at a multiple of 64
    words += '\n';
    return MAGIC + char(words.size() & 255) + char(words.size() >> 8) + words;
}

template <typename T> static void save(const std::string & path, const char * descr, const std::vector<T> & values) {
    std::string bytes = header(descr, std::to_string(values.size()) + ",");
    bytes.append(reinterpret_cast<const char *>(values.data()), values.size() * sizeof(T));
    write_atomically(path, bytes);
}

void save_npy(const std::string & path, const std::vector<double> & values) {
    save(path, "<f8", values);
}
void save_npy(const std::string & path, const std::vector<int32_t> & values) {
    save(path, "<i4", values);
}

void Matrix::map(int file, size_t bytes, size_t offset, bool writable) {
    mapped = mmap(nullptr, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) {
        mapped = nullptr;
        throw JobError(std::string("the reference cannot be mapped into memory (") + strerror(errno) + ")");
    }
    mapped_bytes = bytes;
    values = reinterpret_cast<float *>(static_cast<char *>(mapped) + offset);
}

Matrix Matrix::open(const std::string & path) {
    Matrix found;
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat facts;
    char start[4096];
    const ssize_t got = file < 0 ? -1 : pread(file, start, sizeof start, 0);
    if (got < 10 || fstat(file, &facts) != 0 || memcmp(start, MAGIC.data(), MAGIC.size()) != 0) {
        throw JobError("the reference is missing or no .npy file of version 1.0; score the reference again");
    }
    const size_t length = uint8_t(start[8]) | size_t(uint8_t(start[9])) << 8;
    const std::string words(start + 10, std::min(length, size_t(got) - 10));
    std::smatch part;
    const std::regex form("'descr': '([^']+)', 'fortran_order': (True|False), 'shape': \\(([0-9]+), ([0-9]+)\\)");
    if (!std::regex_search(words, part, form) || part[1] != "<f4" || part[2] != "False") {
        throw JobError("the reference holds something other than float32 rows; score the reference again");
    }
    found.rows = std::stoul(part[3]);
    found.columns = std::stoul(part[4]);
    found.dtype = "float32 [" + part[3].str() + ", " + part[4].str() + "]";
    const size_t bytes = size_t(facts.st_size), offset = 10 + length;
    if (bytes < offset || !found.columns || (bytes - offset) / 4 / found.columns < found.rows) {
        throw JobError("the reference is shorter than it says; push it again");
    }
    found.map(file, bytes, offset, false);
    return found;
}

Matrix Matrix::create(const std::string & path, size_t rows, size_t columns) {
    Matrix made;
    made.rows = rows;
    made.columns = columns;
    const std::string head = header("<f4", std::to_string(rows) + ", " + std::to_string(columns));
    const size_t bytes = head.size() + rows * columns * 4;
    const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    struct statvfs disk;
    if (file < 0 || fstatvfs(file, &disk) != 0) {
        throw JobError(std::string("cannot write beside the job (") + strerror(errno) + ")");
    }
    const uint64_t room = uint64_t(disk.f_bavail) * disk.f_frsize;
    if (bytes > room) { // writing a mapped file to a full disk kills the process
        throw JobError("the reference needs " + std::to_string(bytes) + " bytes of disk, " + std::to_string(room) +
                       " are free; score fewer windows");
    }
    if (ftruncate(file, off_t(bytes)) != 0) {
        throw JobError(std::string("cannot write beside the job (") + strerror(errno) + ")");
    }
    made.map(file, bytes, head.size(), true);
    memcpy(made.mapped, head.data(), head.size());
    return made;
}

Matrix::Matrix(Matrix && other) noexcept
    : rows(other.rows), columns(other.columns), dtype(other.dtype), mapped(other.mapped),
      mapped_bytes(other.mapped_bytes), values(other.values) {
    other.mapped = nullptr;
}

Matrix::~Matrix() {
    if (mapped) {
        munmap(mapped, mapped_bytes);
    }
}
