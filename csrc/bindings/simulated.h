// CPU tensors through the CUDA kernels in the emulator: fastconv.simulated_gpu().
#pragma once

#include <string_view>

#include "../core/table.h"

namespace fastconv::bindings {

bool simulated_gpu();
void set_simulated_gpu(bool on);  // for the whole process

void simulated_run_conv(const ConvProblem&, const ConvOperands&, std::string_view algorithm);
void simulated_run_pool(const PoolProblem&, const PoolOperands&);
void simulated_write_indices(const PoolProblem&, const void* offsets, int64_t* indices);

}  // namespace fastconv::bindings
