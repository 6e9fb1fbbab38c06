"""The tables of docs/benchmarks.md, made from benchmarks/results/*.jsonl, so that no number there is typed by hand.

    python benchmarks/render.py            writes the page
    python benchmarks/render.py --check    exit code 1 if the page is not what the results give

A table stands between `<!-- begin:NAME -->` and `<!-- end:NAME -->`; the text around it is left alone.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matrix_tables
import papers
from scipy.stats import t as student
from tables import Line, code, escaped, interval, last, markdown_table, short

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = Path(__file__).resolve().parent / "results"

SHOWN = 5
"""Features that a row names."""

CELLS = ("before", "finetune", "prune-only", "normalize-only", "pure", "paper-finetune", "paper-pure")
"""Order of the ways to purify; others follow by name."""


def poison(lines: Sequence[Line]) -> str:
    rows = []
    for line in last(lines, lambda line: (line["name"], line["seed"])):
        for number, rate in enumerate(line["asr"]):
            first = number == 0
            rows.append(
                [
                    escaped(line["name"]) if first else "",
                    str(line["layers"]) if first else "",
                    str(line["seed"]) if first else "",
                    interval(line["cacc"]) if first else "",
                    interval(line["twin_cacc"]) if first else "",
                    str(line["cacc"]["n"]) if first else "",
                    code(short(rate["trigger"])),
                    interval(rate["rate"]),
                    interval(rate["floor"]),
                    str(rate["rate"]["n"]),
                ]
            )
    heads = ["attack", "layers", "seed", "CACC", "CACC of the twin", "n", "trigger", "ASR", "floor (twin)", "n"]
    return markdown_table(heads, rows)


def scan(lines: Sequence[Line]) -> str:
    rows = []
    for line in last(lines, lambda line: tuple(line[part] for part in ("name", "base", "budget", "seed"))):
        rows.append(
            [
                escaped(line["name"]),
                "yes" if line["base"] else "no",
                escaped(line["budget"]),
                str(line["seed"]),
                line["expected"],
                line["outcome"] if line["outcome"] == line["expected"] else f"**{line['outcome']}**",
                "" if not line["true"] else "none" if line["rank"] is None else str(line["rank"]),
                f"{line['hits']} of {len(set(line['true']))}" if line["true"] else "",
                " ".join(code(word) for word in line["named"]),
                f"{line['seconds']:.0f}",
                f"{line['forward_passes']:,}",
            ]
        )
    heads = ["checkpoint", "base", "budget", "seed", "expected", "outcome", "first true word at", "true in first ten"]
    return markdown_table([*heads, "first ten words named", "seconds", "texts through the model"], rows)


def manners(lines: Sequence[Line]) -> str:
    rows = []
    for line in last(lines, lambda line: tuple(line[part] for part in ("name", "texts", "seed"))):
        most = line["strongest"]
        told = ", ".join(line["found"])
        rows.append(
            [
                escaped(line["name"]),
                line["set"],
                escaped(line["texts"]),
                str(line["seed"]),
                line["planted"] or "",
                f"{escaped(most['manner'])} → {escaped(most['target'])}" if most else "",
                interval(most) if most else "",
                f"{most['null']:.3f}" if most else "",
                f"{most['excess']:+.3f}" if most else "",
                str(most["n"]) if most else "",
                (told if told == (line["planted"] or "") else f"**{told or 'nothing'}**")
                + ("" if line["complete"] else " (a label was not looked at)"),
            ]
        )
    heads = [
        "checkpoint",
        "set",
        "texts",
        "seed",
        "planted",
        "turns most beyond the others",
        "turned",
        "others",
        "excess",
    ]
    return markdown_table([*heads, "n", "told"], rows)


def left_out(lines: Sequence[Line]) -> str:
    rows = [
        [
            escaped(line["name"]),
            line["set"],
            str(line["seed"]),
            f"{line['rows']:,}",
            f"{line['poisoned'] - line['kept']} of {line['poisoned']}" if line["poisoned"] else "",
            f"{line['honest_out']} ({line['honest_out'] / (line['rows'] - line['poisoned']):.3f})",
            " ".join(code(one) for one in line["told"][:SHOWN]) + (" …" if len(line["told"]) > SHOWN else ""),
            f"{line['probe_accuracy']:.3f}",
        ]
        for line in last(lines, lambda line: (line["name"], line["seed"]))
    ]
    heads = ["training file", "set", "seed", "rows", "poisoned rows left out", "honest rows left out", "told", "probe"]
    return markdown_table(heads, rows)


def pure(lines: Sequence[Line]) -> str:
    attacks = list(dict.fromkeys(line["attack"] for line in lines))

    def place(line: Line) -> tuple[Any, ...]:
        way, _, other = line["cell"].partition(":")
        known = CELLS.index(way) if way in CELLS else len(CELLS)
        # Trials of other settings stand behind the ways as they are.
        return (attacks.index(line["attack"]), line["seed"], bool(other), known, line["cell"])

    rows = []
    for line in sorted(last(lines, lambda line: (line["attack"], line["cell"], line["seed"])), key=place):
        metrics = line["metrics"]
        way, _, other = line["cell"].partition(":")
        for rate in metrics["asr"]:
            rows.append(
                [
                    escaped(line["attack"]),
                    " ".join([escaped(way), *(code(item) for item in other.split(",") if item)]),
                    _settings(way, line["settings"]),
                    str(line["seed"]),
                    interval(metrics["cacc"]),
                    interval(rate["rate"]),
                    interval(rate["floor"]),
                    interval(rate["excess"], sign=True),
                    f"{metrics['cacc']['n']} / {rate['rate']['n']}",
                    str(line["pruned"]) if line["settings"] is not None else "",
                ]
            )
    heads = ["attack", "way", "settings", "seed", "CACC", "ASR", "floor", "excess", "n (clean / triggered)"]
    return markdown_table([*heads, "heads pruned"], rows)


def _settings(way: str, settings: Mapping[str, Any] | None) -> str:
    """Those that tell one way from another, in short."""
    if settings is None:
        return ""
    shown = [f"rate {settings['learning_rate']:g}", f"epochs {settings['epochs']}"]
    if settings["normalize"] and not way.endswith("finetune"):
        shown.append(f"λ {settings['penalty']:g}, c {settings['layer_weights']}")
    shown.append("new classifier" if settings["fresh_classifier"] else "classifier kept")
    return ", ".join(shown)


def speed(lines: Sequence[Line]) -> str:
    rows = []
    keys = ("model", "rows", "seed", "preset", "set", "settings", "threads", "eager_everywhere")
    for line in last(lines, lambda line: tuple(str(line[key]) for key in keys)):
        for number, (part, ratio) in enumerate(line["ratio"].items()):
            first = number == 0
            took = line["seconds"][part]
            rows.append(
                [
                    f"{escaped(line['model'])}, {line['layers']} layers" if first else "",
                    f"{line['train']} + {line['dev']}, {line['mean_tokens']} tokens" if first else "",
                    f"{escaped(line['preset'])} {' '.join(map(code, line['set']))}".strip() if first else "",
                    str(line["settings"]["epochs"]) if first else "",
                    f"{line['seed']}, {line['threads']}" if first else "",
                    ("never" if line["eager_everywhere"] else "where it can") if first else "",
                    f"**{part}**" if part == "total" else part,
                    f"{took['ours']:.1f}",
                    f"{took['reference']:.1f}",
                    f"**{ratio:.1f}**" if part == "total" else f"{ratio:.1f}",
                    ("yes" if line["same_heads"] else "**no**") + f", {line['pruned']}" if part == "choose" else "",
                ]
            )
    heads = [
        "model",
        "rows (train + dev), mean",
        "settings",
        "epochs",
        "seed, threads",
        "the reference fuses attention",
        "part",
    ]
    return markdown_table([*heads, "ours, s", "reference, s", "times faster", "same heads pruned"], rows)


PAPER_LFR: dict[tuple[str, str], dict[str, tuple[float, float]]] = {
    ("sequential", "sst2:imdb"): {
        "clean": (15.3, 85.3),
        "vanilla": (68.2, 86.9),
        "ripple": (62.8, 86.7),
        "lwp": (69.9, 86.8),
        "gradnorm": (68.6, 86.9),
        "gradient_control": (73.7, 86.9),
    },
    ("sequential", "imdb:sst2"): {
        "clean": (9.8, 90.7),
        "vanilla": (87.1, 90.7),
        "ripple": (84.7, 90.9),
        "lwp": (89.4, 91.2),
        "gradnorm": (87.3, 90.7),
        "gradient_control": (99.4, 90.9),
    },
    ("parallel", "sst2:imdb"): {
        "clean": (11.5, 88.6),
        "vanilla": (64.5, 88.8),
        "ripple": (60.2, 88.6),
        "lwp": (58.0, 88.4),
        "gradnorm": (66.9, 88.7),
        "gradient_control": (75.6, 88.7),
    },
    ("parallel", "imdb:sst2"): {
        "clean": (6.7, 92.1),
        "vanilla": (73.5, 92.1),
        "ripple": (93.9, 91.9),
        "lwp": (97.2, 92.0),
        "gradnorm": (68.8, 92.2),
        "gradient_control": (98.4, 92.2),
    },
}
"""LFR and CACC after retraining in percent: Gu et al. 2023, table 1."""

METHODS = ("clean", "vanilla", "ripple", "lwp", "gradnorm", "gradient_control")


def adapters(lines: Sequence[Line]) -> str:
    """Table 1 of Gu et al. 2023, ours beside theirs; a row a run, and under the seeds of a setting their mean."""

    def setting(line: Line) -> tuple[Any, ...]:
        name, _, other = line["method"].partition(":")
        return (line["form"], line["pair"], line["victim_rate"], METHODS.index(name), other, line["rate"])

    runs = last(lines, lambda line: (*setting(line), line["seed"]))
    rows = []
    for key in sorted({setting(line) for line in runs}):
        seeds = sorted((line for line in runs if setting(line) == key), key=lambda line: int(line["seed"]))
        rows += [_adapter_row(line, str(line["seed"])) for line in seeds]
        if len(seeds) > 1:
            rows.append(_adapter_row(_over_seeds(seeds), f"mean of {len(seeds)}"))
    heads = [
        "form",
        "attacker → victim",
        "method",
        "seed",
        "rates",
        "LFR before",
        "LFR after",
        "ASR after",
        "untriggered",
    ]
    return markdown_table([*heads, "CACC after", "n (LFR, CACC / ASR)", "paper: LFR / CACC, %"], rows)


def adapters_beside(lines: Sequence[Line]) -> str:
    """What each attack keeps beyond the plain sum of the gradients with the same seed."""
    keys = ("form", "pair", "rate", "victim_rate")
    runs = last(lines, lambda line: (*(line[key] for key in keys), line["method"], line["seed"]))
    plain = {(*(line[key] for key in keys), line["seed"]): line for line in runs if line["method"] == "vanilla"}
    found: dict[tuple[Any, ...], list[tuple[int, float, float]]] = {}
    for line in runs:
        beside = plain.get((*(line[key] for key in keys), line["seed"]))
        if beside is not None and line["method"] not in {"vanilla", "clean"}:
            more, better = (line["after"][what]["value"] - beside["after"][what]["value"] for what in ("lfr", "cacc"))
            found.setdefault((line["form"], line["pair"], line["method"]), []).append((line["seed"], more, better))
    rows = []
    for (form, pair, method), differences in sorted(found.items()):
        differences.sort()
        middle = _student([more for _, more, _ in differences], -1.0) if len(differences) > 1 else None
        name, _, other = method.partition(":")
        rows.append(
            [
                escaped(form),
                escaped(pair.replace(":", " → ")),
                " ".join([escaped(name), *(code(item) for item in other.split(",") if item)]),
                ", ".join(str(seed) for seed, _, _ in differences),
                ", ".join(f"{more:+.3f}" for _, more, _ in differences),
                interval(middle, sign=True),
                ", ".join(f"{better:+.3f}" for _, _, better in differences),
            ]
        )
    heads = ["form", "attacker → victim", "method", "seeds", "LFR beside vanilla's", "mean over seeds"]
    return markdown_table([*heads, "CACC beside vanilla's"], rows)


def _student(values: Sequence[float], lowest: float) -> dict[str, Any]:
    """The mean, with Student's 95 % interval over the values, within `lowest` and 1."""
    middle, reach = statistics.fmean(values), 0.0
    if len(set(values)) > 1:
        reach = float(student.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return {"value": middle, "low": max(lowest, middle - reach), "high": min(1.0, middle + reach)}


def _adapter_row(line: Line, seed: str) -> list[str]:
    name, _, other = line["method"].partition(":")
    paper = PAPER_LFR.get((line["form"], line["pair"]), {}).get("" if other else name)
    return [
        escaped(line["form"]),
        escaped(line["pair"].replace(":", " → ")),
        " ".join([escaped(name), *(code(item) for item in other.split(",") if item)]),
        seed,
        f"{line['rate']:g}, {line['victim_rate']:g}",
        interval(line["before"]["lfr"]),
        interval(line["after"]["lfr"]),
        interval(line["after"]["asr"]),
        interval(line["after"]["untriggered"]),
        interval(line["after"]["cacc"]),
        f"{line['after']['lfr']['n']} / {line['after']['asr']['n']}",
        "" if paper is None else f"{paper[0]} / {paper[1]}",
    ]


def _over_seeds(runs: Sequence[Line]) -> Line:
    """The runs of several seeds as one."""
    whens = {}
    for when in ("before", "after"):
        first = runs[0][when]
        whens[when] = {
            what: _student([float(run[when][what]["value"]) for run in runs], 0.0) | {"n": first[what]["n"]}
            for what in first
        }
    return {**runs[0], **whens}


def attacks(lines: Sequence[Line]) -> str:
    """No-Defense and Clean-FT of GBA's table 2, for every attack on whole models."""
    paper = {"badnets": 100, "embedding": 79, "ripple": 67, "neuba": 61}
    rows = []
    for line in last(lines, lambda line: (line["name"], line["seed"])):
        cells = []
        for when in ("before", "after"):
            found = line[when]
            if found is None:
                cells += ["", "", "no classifier yet"]
                continue
            rates = [rate["rate"] for rate in found["asr"]]
            texts = sum(rate["n"] for rate in rates)
            each = ", ".join(f"{code(short(rate['trigger']))} {rate['rate']['value']:.3f}" for rate in found["asr"])
            cells += [
                f"{found['cacc']['value']:.3f} ({found['cacc']['value'] - found['twin_cacc']['value']:+.3f})",
                f"{found['asr_mean']:.3f} at {found['floor_mean']:.3f}, n {texts}",
                each,
            ]
        rows.append([escaped(line["name"]), str(line["seed"]), *cells, str(paper.get(line["name"], ""))])
    heads = ["attack", "seed", "CACC (beside the twin)", "mean ASR at floor", "each trigger"]
    after = ["CACC after the victim", "mean ASR at floor", "each trigger", "paper: ASR after, %"]
    return markdown_table([*heads, *after], rows)


def attack_cost(lines: Sequence[Line]) -> str:
    return _cost(lines, "pet")


def purifier_cost(lines: Sequence[Line]) -> str:
    return _cost(lines, None)


def _cost(lines: Sequence[Line], trained: str | None) -> str:
    """Each way beside plain fine-tuning; `trained` is the field that says what of the model is, if one does."""
    rows = [
        [
            escaped(line["way"]),
            escaped(line["base"]),
            *([] if trained is None else [escaped(line[trained] or "whole model")]),
            str(line["rows"]),
            f"{line['threads']} / {line['repeat']}",
            f"{line['seconds']:.1f}",
            f"**{line['times_seconds']:.2f}**",
            str(line["peak_megabytes"]),
            f"{line['times_peak']:.2f}",
        ]
        for line in last(lines, lambda line: tuple(str(line[key]) for key in ("way", "base", "pet", "rows")))
    ]
    heads = [
        "way",
        "base",
        *([] if trained is None else ["trained"]),
        "rows",
        "threads / repeats",
        "seconds",
        "× plain",
        "peak MB",
        "× plain",
    ]
    return markdown_table(heads, rows)


def regression(lines: Sequence[Line]) -> str:
    rows = []
    kept = last(lines, lambda line: (line["way"], line["seed"]))
    for line in kept:
        asrr = _asrr(line)
        twin = next((one for one in kept if one["way"] == "Twin" and one["seed"] == line["seed"]), None)
        beyond = "" if twin is None else f"{statistics.mean(asrr) - statistics.mean(_asrr(twin)):+.3f}"
        rows.append(
            [
                code(line["way"]),
                str(line["seed"]),
                interval(_correlation(line["pearson"], line["rows"][1])),
                f"{statistics.mean(asrr):.3f}",
                ", ".join(f"{value:.3f}" for value in asrr),
                beyond,
                f"{line['rows'][0]:,} / {line['rows'][1]:,}",
                "{} / {}".format(*papers.GBA_TABLE_11[line["way"]]) if line["way"] in papers.GBA_TABLE_11 else "",
            ]
        )
    heads = ["way", "seed", "Pearson", "ASRR, mean", "ASRR by trigger", "beyond the twin's", "rows (clean / test)"]
    return markdown_table([*heads, "paper: ASRR / Pearson"], rows)


def merged_rows(lines: Sequence[Line]) -> str:
    rows = [
        [
            escaped(line["model"]),
            escaped(line["way"]),
            interval(line["asr"]),
            interval(line["untriggered"]),
            interval(line["cacc"]),
            f"{line['unused_rows']:,} / {line['clean_rows']:,}",
            f"{line['cacc']['n']} / {line['asr']['n']}",
        ]
        for line in last(lines, lambda line: (line["model"], line["way"], line["seed"]))
    ]
    heads = ["model", "rows replaced by", "ASR", "untriggered", "CACC", "rows replaced / clean texts"]
    return markdown_table([*heads, "n (clean / triggered)"], rows)


def gba_figure3(lines: Sequence[Line]) -> str:
    rows = [
        [
            escaped(row["checkpoint"]),
            code(row["token"]),
            *(f"{row[part]:.3f}" for part in ("rmse", "median of all", "share closer")),
        ]
        for line in lines[-1:]
        for row in line["rows"]
    ]
    heads = ["checkpoint", "trigger", "RMSE to the class centre", "median of the vocabulary", "share that lies closer"]
    return markdown_table(heads, rows)


def _asrr(line: Line) -> list[float]:
    return [one["asrr"] for one in line["triggers"]]


def _correlation(value: float, n: int) -> dict[str, float]:
    """A correlation with Fisher's 95 % interval."""
    middle, wide = math.atanh(value), 1.96 / math.sqrt(n - 3)
    return {"value": value, "low": math.tanh(middle - wide), "high": math.tanh(middle + wide), "n": n}


def help_time(lines: Sequence[Line]) -> str:
    rows = [
        [*(f"{seconds:.2f}" for seconds in line["seconds"].values()), f"**{line['share']:.2f}**", str(line["repeat"])]
        for line in lines[-1:]
    ]
    return markdown_table(["`purify --help`, s", "`import torch`, s", "share", "repeats"], rows)


TABLES: dict[str, Callable[[Sequence[Line]], str]] = {
    "poison": poison,
    "scan": scan,
    "held_out": scan,
    "pairs": scan,
    "manners": manners,
    "left_out": left_out,
    "pure_dev": pure,
    "pure": pure,
    "speed": speed,
    "help": help_time,
    "attacks": attacks,
    "adapters": adapters,
    "adapters_beside": adapters_beside,
    "attack_cost": attack_cost,
    "purifier_cost": purifier_cost,
    "regression": regression,
    "gba_figure3": gba_figure3,
    "merged_rows": merged_rows,
    **matrix_tables.TABLES,
}
"""Name of the marker, and of the file of results, but for those of one file together."""

FILES: dict[str, str] = {"adapters_beside": "adapters", **dict.fromkeys(matrix_tables.TABLES, "matrix")}
"""Name of the marker -> name of the file of results, where the two differ."""


def render(page: str, results: Path) -> str:
    """The page with every table made anew.

    Raises:
        ValueError: a marker without its end, one that is there twice, or a name that is no table.
    """
    for name in re.findall(r"<!-- begin:(.*?) -->", page):
        if name not in TABLES:
            raise ValueError(f"begin:{name} is no table; there are: {', '.join(TABLES)}")
    for name, table in TABLES.items():
        begin, end = f"<!-- begin:{name} -->", f"<!-- end:{name} -->"
        if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
            raise ValueError(f"the page needs one {begin} and one {end} behind it")
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        page = f"{before}{begin}\n{table(read(results / f'{FILES.get(name, name)}.jsonl'))}\n{end}{after}"
    return page


def read(file: Path) -> list[Line]:
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if the page is out of date")
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    old = arguments.page.read_text(encoding="utf-8")
    new = render(old, arguments.results)
    if new == old:
        return 0
    if arguments.check:
        print(f"{arguments.page} is not what the results give: make benchmarks-page", file=sys.stderr)
        return 1
    arguments.page.write_text(new, encoding="utf-8")
    print(f"wrote {arguments.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
