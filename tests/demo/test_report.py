"""The table."""

from batchcam_captum.demo.report import table


def run(accuracy, ratio):
    arm = {
        "accuracy": accuracy,
        "l1": 0.3,
        "ssim": 0.1,
        "cosine": 0.5,
        "dead_fraction": 0.0,
        "seconds_per_step": 0.01,
    }
    return {"cross_entropy": arm, "regularized": {**arm, "l1": 0.1}, "step_ratio": ratio}


def cells(text, row):
    (line,) = [line for line in text.splitlines() if row in line]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_one_seed_gives_the_values():
    text = table([run(0.9876, 1.25)], "+ batch_cam")
    assert cells(text, "accuracy") == ["98.76", "98.76"]
    assert cells(text, "L1") == ["0.300", "0.100"]
    assert cells(text, "milliseconds") == ["10.00", "10.00"]
    assert cells(text, "ratio") == ["1", "1.250"]


def test_several_seeds_give_mean_and_sample_deviation():
    text = table([run(0.90, 1.0), run(0.92, 1.2)], "+ batch_cam")
    assert cells(text, "accuracy")[0] == "91.00 ± 1.41"
    assert cells(text, "ratio")[1] == "1.100 ± 0.141"
