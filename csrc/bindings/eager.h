// A short way into the CPU operators for plain eager calls, see eager.cpp.
#pragma once

typedef struct _object PyObject;

namespace fastconv::bindings {

// Adds eager_<operator>(...) for every operator to a Python module. False with a Python error set if that fails.
bool add_eager_functions(PyObject* module);

}  // namespace fastconv::bindings
