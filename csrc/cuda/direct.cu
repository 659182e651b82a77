#include "direct.cuh"

#include "rows.h"

namespace fastconv::FASTCONV_GPU {

bool direct_plan_form(const ConvProblem& p, DirectForm form, ConvPlan& plan) {
  switch (form) {
    case DirectForm::any: direct_any_plan(p, plan); return true;
    case DirectForm::tiled: return direct_tiled_plan(p, plan);
    case DirectForm::weight: return direct_weight_plan(p, plan);
  }
  return false;
}

Status direct_supports(const ConvProblem&) { return {}; }

void direct_plan(const ConvProblem& p, int, ConvPlan& plan) {
  const ConvPlan blank = plan;
  direct_plan_form(p, DirectForm::any, plan);
  ConvPlan other = blank;
  const DirectForm form = p.pass == Pass::grad_weight ? DirectForm::weight : DirectForm::tiled;
  if (direct_plan_form(p, form, other) && other.cost < plan.cost) plan = other;
}

Status direct_run(const ConvPlan& plan, const ConvOperands& operands, void* workspace, const Execution& exec) {
  switch (static_cast<DirectForm>(plan.detail[DirectDetail::form])) {
    case DirectForm::any: return direct_any_run(plan, operands, workspace, exec.stream);
    case DirectForm::tiled: return direct_tiled_run(plan, operands, workspace, exec.stream);
    case DirectForm::weight: return direct_weight_run(plan, operands, workspace, exec.stream);
  }
  return Status::refuse("a plan without a form");
}

}  // namespace fastconv::FASTCONV_GPU
