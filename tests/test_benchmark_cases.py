"""What a run measures: suites, CSV files, problem texts and sweeps become cases, and bad ones say what is wrong."""

import csv
import dataclasses

import fastconv
import pytest
import torch
from benchmarks import cases, geometry, models, networks, operands, suites, sweep
from benchmarks.formulas import window_positions
from benchmarks.rows import facts_of

_C = fastconv.ops.extension()


def test_every_line_of_the_suites_has_the_output_size_that_its_list_gives():
    wrong = []
    for file, kind in suites._FILES.items():
        with open(suites.FOLDER / file, newline="") as rows:
            given = list(csv.DictReader(rows))
        for row, line in zip(given, suites.read(suites.FOLDER / file, kind), strict=True):
            f = line.fields
            rounding = f.get("ceil_mode", False)
            p = window_positions(f["h"], f["r"], f["stride_h"], f["pad_top"], f["dilation_h"], rounding)
            q = window_positions(f["w"], f["s"], f["stride_w"], f["pad_left"], f["dilation_w"], rounding)
            if (p, q) != (int(row["out_h"]), int(row["out_w"])):
                wrong.append(row)
    assert wrong == []


def test_every_suite_is_listed_and_every_problem_is_one_of_the_extensions():
    names = suites.names()
    assert names["onednn:shapes_resnet_50"] == (16, 1)
    assert names["miopen:vgg16_v1_fp32_bs4"] == (9, 0)
    assert sum(map(sum, names.values())) == 5809 + 59
    for name in names:
        for case in cases.of_suite(name)[:3]:
            facts = _C.problem_facts(case.problems("nhwc")[0][1])
            assert (facts["p"], facts["q"]) == geometry.output_plane(case.fields)


def test_suites_hold_different_problems_only():
    found = cases.of_suite("onednn:shapes_yolov2")
    assert len({case.problems("nchw")[0][1] for case in found}) == len(found) == 14
    repeated = [suites.Line("a", "s", {"n": 1}), suites.Line("b", "s", {"n": 2}), suites.Line("c", "s", {"n": 1})]
    assert [line.name for line in suites.different(repeated)] == ["a", "b"]


def test_the_notices_of_the_lists_travel_with_them():
    notice = (suites.FOLDER / "NOTICE.txt").read_text()
    for words in ("oneDNN", "DeepBench", "MIOpen", "MIT License", "Copyright (c) 2017 - 2022 Advanced Micro Devices"):
        assert words in notice
    assert "Apache License" in (suites.FOLDER / "LICENSE-Apache-2.0.txt").read_text()


def test_a_csv_of_ones_own(tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text("name,kind,n,c,h,w,k,r,s,pad_t,pad_l,stride_h,stride_w,relu,ceil,nopad\n"
                    "first,conv,1,4,6,6,8,3,3,1,1,2,2,1,,\n"
                    "second,avg,2,4,6,6,,3,3,1,1,2,2,,1,1\n")  # fmt: skip
    texts = [case.problems("nchw")[0][1] for case in cases.of_csv(file)]
    assert texts == [
        "conv n1c4h6w6 k8r3s3 st2 pd1 dl1 g1 f32 nchw fwd relu",
        "avgpool n2c4h6w6 r3s3 st2 pd1 dl1 f32 nchw fwd ceil nopad",
    ]


def test_a_csv_of_every_kind(tmp_path):
    file = tmp_path / "kinds.csv"
    file.write_text("name,kind,n,c,h,w,k,r,s,pad_t,pad_l,stride_h,stride_w,activation,norm,out_h,out_w,bias\n"
                    "up,conv_transpose,1,8,6,6,4,4,4,1,1,2,2,,,,,1\n"
                    "odd,conv_transpose,1,8,6,6,4,3,3,1,1,2,2,,,12,11,\n"
                    "pool,adaptive_avg,1,8,13,13,,,,,,,,,,6,6,\n"
                    "halves,adaptive_max,1,8,12,12,,,,,,,,,,6,6,\n"
                    "norm,lp,1,8,12,12,,2,2,,,2,2,,2,,,\n"
                    "leaky,conv,1,8,12,12,4,3,3,1,1,1,1,leaky_relu:0.2,,,,\n")  # fmt: skip
    assert [case.problems("nchw")[0][1] for case in cases.of_csv(file)] == [
        "conv n1c4h12w12 k8r4s4 st2 pd1 dl1 g1 f32 nchw grad_input bias",
        "conv n1c4h12w11 k8r3s3 st2 pd1 dl1 g1 f32 nchw grad_input",
        "avgpool n1c8h13w13 r3s3 st1 pd0 dl1 f32 nchw fwd adaptive p6q6",
        "maxpool n1c8h12w12 r2s2 st2 pd0 dl1 f32 nchw fwd",
        "lppool n1c8h12w12 r2s2 st2 pd0 dl1 f32 nchw fwd norm2",
        "conv n1c8h12w12 k4r3s3 st1 pd1 dl1 g1 f32 nchw fwd leaky_relu:0.2",
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("a,b\n1,2\n", "has no column n, c, h, w, r, s"),
        ("n,c,h,w,k,r,s\n1,3,8,8,4,3,3\n1,3,x,8,4,3,3\n", "line 3: h is 'x', expected a whole number"),
        ("n,c,h,w,k,r,s\n1,3,8,8,,3,3\n", "line 2: k is '', expected a whole number"),
        ("kind,n,c,h,w,r,s\nmin,1,3,8,8,3,3\n", "line 2: kind is 'min'; there are conv, conv_transpose"),
        ("n,c,h,w,k,r,s,activation\n1,3,8,8,4,3,3,sigmod\n", "unknown activation 'sigmod'; did you mean sigmoid"),
        ("n,c,h,w,k,r,s,activation\n1,3,8,8,4,3,3,relu:1\n", "relu takes no number"),
        ("n,c,h,w,k,r,s,activation\n1,3,8,8,4,3,3,elu:-1\n", "'-1' is no number of at least 0"),
        ("kind,n,c,h,w\nadaptive_avg,1,3,8,8\n", "line 2: out_h is '', expected a whole number"),
        ("kind,n,c,h,w,k,r,s,stride_h,out_h\nconv_transpose,1,3,8,8,4,3,3,2,99\n", "out_h is 99, expected 17 to 18"),
    ],
)
def test_bad_csv_files_are_refused_with_the_line(tmp_path, text, expected):
    file = tmp_path / "bad.csv"
    file.write_text(text)
    with pytest.raises(suites.BadSuite) as raised:
        cases.of_csv(file)
    assert expected in str(raised.value)
    with pytest.raises(suites.BadSuite, match="cannot be read"):
        cases.of_csv(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    "text",
    [
        "conv n2c4h9w7 k6r3s2 st2x1 pd1x0 dl1x2 g2 bf16 nhwc grad_weight bias relu",
        "conv n2c4h9w7 k6r3s3 st1 pd0,1,2,1 dl1 g1 f32 nchw fwd bias relu res acc:fast",
        "conv n2c4h9w7 k6r3s3 st1 pd1 dl1 g1 f64 nchw grad_input",
        "maxpool n1c4h9w7 r3s3 st2 pd1 dl2 f16 nhwc grad_input off8 ceil",
        "avgpool n1c4h9w7 r3s3 st2 pd1 dl1 f32 nchw fwd nopad div3",
        "conv n2c4h9w7 k6r3s3 st1 pd1 dl1 g1 f32 nhwc grad_weight bias leaky_relu:0.2",
        "conv n2c4h9w7 k6r3s3 st2 pd1 dl1 g2 f32 nhwc grad_input bias",
        "maxpool n1c4h13w13 r3s3 st1 pd0 dl1 bf16 nhwc grad_input off8 adaptive p6q6",
        "avgpool n1c4h13w13 r3s3 st1 pd0 dl1 f32 nchw fwd adaptive p6q6",
        "lppool n1c4h12w12 r2s2 st2 pd0 dl1 f32 nchw grad_input norm2.5",
    ],
)
def test_a_problems_text_is_a_case_and_comes_out_again(text):
    case = cases.of_text(text)
    assert [t for _, t in case.problems(case.layouts[0])] == [text]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("conv n1c3h8w8 k4r3", "bad problem text at word 3"),
        ("conv n1c3h8w8 k4r3s3 st1 pd1 dl1 g1 i8 nchw fwd", "runs f32, f64, f16, bf16, not i8"),
        ("conv n1c3h8w8 k4r3s3 st1 pd1 dl1 g1 f32 nchw fwd tf32", "cannot run"),
        ("conv n1c3h8w8 k4r3s3 st1 pd1 dl1 g1 f32 nchw fwd det", "cannot run"),
        ("conv n1c3h8w8 k4r3s3 st1 pd1 dl1 g1 f32 x:192,64,8,1 w:nhwc y:nchw fwd", "cannot run"),
        ("maxpool n1c3h8w8 r3s3 st2 pd1 dl1 f32 nchw gather off8", "cannot run"),
        ("conv n1c3h8w8 k4r3s3 st1 pd1 dl1 g1 f32 nchw grad_input bias relu", "transposed convolution, which has no"),
        ("conv n1c3h8w8 k4r3s3 st1 pd0,1,2,1 dl1 g1 f32 nchw grad_input bias", "equal pads"),
        ("conv n1c3h8w8 k4r3s3 st1 pd1 dl1 g1 f32 nchw grad_input gelu", "does not follow from its output"),
        ("lppool n1c3h8w8 r2s2 st2 pd0 dl1 f32 nchw fwd norminf", "of finite norm"),
    ],
)
def test_texts_that_cannot_be_run_say_why(text, expected):
    with pytest.raises(ValueError) as raised:
        cases.of_text(text)
    assert expected in str(raised.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("conv n1c3h2w2 k4r3s3 st1 pd0 dl1 g1 f32 nchw fwd", "Kernel size can't be greater than actual input size"),
        ("conv n1c3h8w8 k4r3s3 st1 pd0,1,0,1 dl1 g2 f32 nhwc grad_input relu", "groups=2"),
        ("maxpool n1c3h8w8 r2s2 st2 pd2 dl1 f32 nchw fwd", "pad should be at most half of effective kernel size"),
        ("avgpool n1c3h2w2 r5s5 st1 pd0 dl1 f32 nchw fwd ceil", "Output size is too small"),
    ],
)
def test_impossible_problems_are_cases_that_pytorch_refuses(text, message):
    from benchmarks import contestants

    case = cases.of_text(text)
    with pytest.raises(RuntimeError) as raised:
        operands.Operands(case).reference(contestants.torch_results)
    assert message in str(raised.value)


def test_networks_become_cases_with_the_tensors_that_their_layers_see():
    network = networks.NETWORKS["lenet5"]
    model = models.build(network)
    x = torch.randn(2, *network.input_shape)
    found = {case.name: case for case in cases.of_network(network, model, x)}
    assert list(found) == ["C1", "S2", "C3", "S4", "C5", "F6", "output"]
    assert [case.kind for case in found.values()] == ["conv", "avg", "conv", "avg", "linear", "linear", "linear"]
    assert torch.equal(found["C1"].tensors[0], x)
    assert found["C1"].first
    assert not found["S2"].first
    with torch.no_grad():
        after = model.C1_relu(model.C1(x))
    assert torch.equal(found["S2"].tensors[0], after)
    assert found["C3"].tensors[1] is not None
    assert found["C3"].fields["n"] == 2
    assert list(cases.of_network(network, model, x, only=["C3"]))[0].name == "C3"


def test_transposed_convolutions_and_global_averages_of_networks_are_cases():
    from benchmarks.networks.fcn import fcn8s

    network = fcn8s(64, 64, filters=4)
    x = torch.randn(1, *network.input_shape)
    found = {case.name: case for case in cases.of_network(network, models.build(network), x)}
    up = [case for case in found.values() if case.kind == "conv_transpose"]
    assert [case.name.rpartition(".")[2] for case in up] == ["upscore2", "upscore_pool4", "upscore8"]
    assert up[-1].passes() == ["grad_input"]
    assert up[-1].problems("nhwc")[0][1].endswith("nhwc grad_input")
    assert sum(facts_of(case, _C)["macs"] for case in found.values()) == network.macs()
    excited = networks.NETWORKS["se-resnet50"]
    averages = [layer.name for layer, before, _ in excited.walk() if layer.kind == "avg"]
    assert len(averages) == 16 + 1
    small = dataclasses.replace(excited, input_shape=(3, 64, 64))
    x = torch.randn(1, *small.input_shape)
    made = cases.of_network(small, models.build(small), x, only=averages)
    assert [case.name for case in made] == averages
    assert all(geometry.output_plane(case.fields) == (1, 1) for case in made)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("name, size, heads", [("googlenet", 80, 8), ("resnet18", 64, 0), ("course-same", None, 0)])
def test_the_layers_of_branching_networks_add_up_to_the_network(name, size, heads, training):
    network = networks.NETWORKS[name]
    if size:
        network = dataclasses.replace(network, input_shape=(3, size, size))
    model = models.build(network)
    found = cases.of_network(network, model, torch.randn(2, *network.input_shape), training=training)
    assert not model.training
    macs = sum(facts_of(case, _C)["macs"] for case in found)
    assert macs == network.macs(2, training)
    assert len(found) == len(list(network.walk())) + (heads if training else 0)
    normed = [case for case in found if f"{case.name}_bn" in dict(model.named_modules())]
    assert all((case.tensors[2] is None) == training for case in normed)  # folded: there is a bias
    assert bool(normed) == (name == "resnet18")


def base():
    return [
        cases.of_text("conv n1c4h6w6 k8r3s3 st1 pd1 dl1 g1 f32 nchw fwd"),
        cases.of_text("maxpool n1c4h6w6 r2s2 st2 pd0 dl1 f32 nchw fwd"),
    ]


def test_a_sweep_is_every_combination_that_exists():
    given = sweep.parse(["batch=1,8", "dtype=fp32,bf16", "layout=nchw,nhwc", "pass=fwd,grad_input,grad_weight"])
    assert given == {
        "batch": [1, 8], "dtype": ["f32", "bf16"], "layout": ["nchw", "nhwc"],
        "pass": ["fwd", "grad_input", "grad_weight"],
    }  # fmt: skip
    found = sweep.apply(base(), given)
    assert len(found) == 2 * 2 * 2 * (3 + 2)  # a pool has no weight
    texts = [text for case in found for _, text in case.problems(case.layouts[0])]
    assert len(set(texts)) == len(texts)
    assert "conv n8c4h6w6 k8r3s3 st1 pd1 dl1 g1 bf16 nhwc grad_weight" in texts
    assert "maxpool n8c4h6w6 r2s2 st2 pd0 dl1 bf16 nchw grad_input off8" in texts


def test_a_sweep_leaves_out_gradients_that_need_the_activations_input():
    given = [cases.of_text("conv n1c4h6w6 k8r3s3 st1 pd1 dl1 g1 f32 nchw fwd gelu")]
    found = sweep.apply(given, sweep.parse(["pass=fwd,grad_input,grad_weight,train"]))
    assert [case.direction for case in found] == ["fwd", "train"]
    assert found[0].problems("nchw")[0][1].endswith("fwd gelu")
    assert [text.rpartition(" ")[2] for _, text in found[1].problems("nchw")] == ["fwd", "grad_input", "grad_weight"]


def test_a_sweep_of_accuracy_classes_does_not_repeat_pools():
    found = sweep.apply(base(), sweep.parse(["accuracy=torch,fast"]))
    assert [(case.kind, case.accuracy) for case in found] == [("conv", "torch"), ("conv", "fast"), ("max", None)]


@pytest.mark.parametrize(
    "words, expected",
    [
        (["bach=1"], "unknown sweep key 'bach'; did you mean batch"),
        (["batch"], "'batch' is not of the form key=value,value; keys are batch, dtype"),
        (["batch=0"], "batch '0' is not a positive whole number"),
        (["batch=x"], "batch 'x' is not"),
        (["batch="], "sweep key 'batch' has no value"),
        (["batch=1", "batch=2"], "given twice"),
        (["dtype=fp33"], "unknown dtype 'fp33'; did you mean fp32"),
        (["pass=grad_wait"], "unknown pass 'grad_wait'; did you mean grad_weight"),
        (["layout=nhcw"], "unknown layout 'nhcw'; there are nchw, nhwc"),
    ],
)
def test_bad_sweeps_name_what_is_right(words, expected):
    with pytest.raises(sweep.BadSweep) as raised:
        sweep.parse(words)
    assert expected in str(raised.value)
