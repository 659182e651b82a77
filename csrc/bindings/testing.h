#pragma once

#include <pybind11/pybind11.h>

namespace fastconv::bindings {

// Adds _C.run_row, by which the tests run one row of the table on raw memory of their own.
void add_testing(pybind11::module_& m);

}  // namespace fastconv::bindings
