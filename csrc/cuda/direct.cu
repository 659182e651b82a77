#include "direct.cuh"

#include "rows.h"

namespace fastconv::FASTCONV_GPU {

bool direct_plan_form(const ConvProblem& p, DirectForm form, ConvPlan& plan) {
  switch (form) {
    case DirectForm::any: direct_any_plan(p, plan); return true;
  }
  return false;
}

Status direct_supports(const ConvProblem&) { return {}; }

void direct_plan(const ConvProblem& p, int, ConvPlan& plan) {
  direct_plan_form(p, DirectForm::any, plan);
}

Status direct_run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  switch (static_cast<DirectForm>(plan.detail[DirectDetail::form])) {
    case DirectForm::any: return direct_any_run(plan, operands, workspace, exec.stream);
  }
  return Status::refuse("a plan without a form");
}

}  // namespace fastconv::FASTCONV_GPU
