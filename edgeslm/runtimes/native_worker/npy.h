// Arrays as numpy writes and reads them: .npy, format version 1.0, little-endian, C order.
#pragma once

#include <string>
#include <vector>

void save_npy(const std::string & path, const std::vector<double> & values);  // float64 [T]
void save_npy(const std::string & path, const std::vector<int32_t> & values); // int32 [T]

// A float32 matrix [rows, columns] on disk, mapped into memory; the destructor lets go of it.
class Matrix {
public:
    // Both raise JobError: for a file that is none, for a disk without room.
    static Matrix open(const std::string & path);
    static Matrix create(const std::string & path, size_t rows, size_t columns);

    Matrix(Matrix && other) noexcept;
    Matrix(const Matrix &) = delete;
    ~Matrix();
    float * row(size_t index) const { return values + index * columns; }

    size_t rows = 0, columns = 0;
    std::string dtype; // "float32 [3, 5]"

private:
    Matrix() = default;
    void map(int file, size_t bytes, size_t offset, bool writable);

    void * mapped = nullptr;
    size_t mapped_bytes = 0;
    float * values = nullptr;
};
