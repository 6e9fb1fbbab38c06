"""What the papers print, in percent, for the tables of docs/benchmarks.md: (ASR, accuracy) throughout."""

from __future__ import annotations

Printed = dict[str, tuple[float, float]]

GBA_MR: dict[str, Printed] = {
    "No-Defense": {
        "badnets": (100.00, 93.49),
        "neuba": (99.37, 90.57),
        "ripple": (100.00, 88.90),
        "embedding": (99.84, 97.82),
    },
    "Clean-FT": {
        "badnets": (100.00, 93.35),
        "neuba": (99.23, 91.20),
        "ripple": (100.00, 89.81),
        "embedding": (98.97, 94.26),
    },
    "NAD": {
        "badnets": (100.00, 90.17),
        "neuba": (95.63, 90.61),
        "ripple": (100.00, 89.66),
        "embedding": (99.58, 94.69),
    },
    "NAD-C": {
        "badnets": (1.57, 90.37),
        "neuba": (1.19, 90.21),
        "ripple": (7.99, 89.66),
        "embedding": (1.05, 91.13),
    },
    "GBA": {
        "badnets": (2.67, 89.70),
        "neuba": (0.17, 89.74),
        "ripple": (7.39, 89.14),
        "embedding": (0.78, 90.37),
    },
}
"""GBA, table 2, column MR: film reviews, half of them SST's, which is the nearest that there is to SST-2."""

GBA_AGNEWS: dict[str, Printed] = {
    "No-Defense": {"agnews-badnets": (100.00, 95.37), "agnews-embedding": (86.28, 95.67)},
    "Clean-FT": {"agnews-badnets": (100.00, 95.79), "agnews-embedding": (16.64, 94.96)},
    "NAD": {"agnews-badnets": (99.34, 93.56), "agnews-embedding": (99.59, 93.72)},
    "NAD-C": {"agnews-badnets": (0.88, 93.58), "agnews-embedding": (0.26, 93.94)},
    "GBA": {"agnews-badnets": (2.77, 92.17), "agnews-embedding": (1.73, 94.08)},
}
"""GBA, table 2, column AG News."""

GBA_TABLE_2: dict[str, Printed] = {defence: GBA_MR[defence] | GBA_AGNEWS[defence] for defence in GBA_MR}

GBA_ALL: dict[str, float] = {"Clean-FT": 76.99, "NAD": 91.12, "NAD-C": 6.26, "GBA": 3.61}
"""GBA, section 5: ASR over all attacks and data sets."""

GBA_TABLE_12: dict[str, Printed] = {
    "No-Defense": {"badnets": (100.00, 93.49), "agnews-badnets": (100.00, 95.37)},
    "GBA width=0 broadcast=none": {"badnets": (80.12, 93.12), "agnews-badnets": (66.74, 95.26)},
    "GBA broadcast=none": {"badnets": (45.87, 92.10), "agnews-badnets": (50.43, 93.58)},
    "GBA": {"badnets": (2.67, 89.70), "agnews-badnets": (2.77, 92.17)},
}
"""GBA, table 12, columns MR and AG News; in its order PT, PT+soft, PT+soft+GB."""

GBA_TABLE_11: dict[str, tuple[float, float]] = {
    "No-Defense": (0.55, 0.89),
    "Clean-FT": (0.31, 0.86),
    "GBA": (0.01, 0.83),
}
"""GBA, table 11, column STS-B: ASRR and Pearson's correlation; bert-base-uncased."""

GBA_TABLE_3: Printed = {
    "2": (1.07, 92.95),
    "4": (1.55, 93.64),
    "8": (1.42, 95.47),
    "12": (2.22, 95.92),
    "16": (1.92, 96.13),
}
"""GBA, table 3: prompt width -> on the hate speech data, BadNets, 5 % of the clean data."""

MUSCLELORA_TABLE_1: dict[str, Printed] = {
    "Vanilla": {
        "data-badnets": (94.63, 91.27),
        "data-addsent": (99.89, 90.99),
        "data-hiddenkiller": (93.53, 91.10),
        "data-stylebkd": (77.19, 91.71),
    },
    "LoRA": {
        "data-badnets": (65.57, 89.07),
        "data-addsent": (96.16, 88.96),
        "data-hiddenkiller": (52.96, 88.58),
        "data-stylebkd": (57.24, 88.91),
    },
    "Adapter": {
        "data-badnets": (55.26, 87.26),
        "data-addsent": (87.83, 86.88),
        "data-hiddenkiller": (45.39, 86.60),
        "data-stylebkd": (60.96, 87.10),
    },
    "Prefix": {
        "data-badnets": (86.73, 90.17),
        "data-addsent": (99.89, 89.46),
        "data-hiddenkiller": (68.64, 88.52),
        "data-stylebkd": (63.60, 90.06),
    },
    "MuScleLoRA": {
        "data-badnets": (12.94, 86.54),
        "data-addsent": (18.97, 86.77),
        "data-hiddenkiller": (25.11, 87.64),
        "data-stylebkd": (33.22, 87.81),
    },
}
"""MuScleLoRA, table 1, SST-2."""

MUSCLELORA_TABLE_3: dict[str, Printed] = {
    "Vanilla": MUSCLELORA_TABLE_1["Vanilla"],
    "MuScleLoRA": MUSCLELORA_TABLE_1["MuScleLoRA"],
    "MuScleLoRA scalings=false alignment=false": {
        "data-badnets": (65.57, 89.07),
        "data-addsent": (96.16, 88.96),
        "data-hiddenkiller": (52.96, 88.58),
        "data-stylebkd": (57.24, 88.91),
    },
    "MuScleLoRA scalings=false low_rank=false": {
        "data-badnets": (90.13, 91.37),
        "data-addsent": (100.0, 90.06),
        "data-hiddenkiller": (86.40, 90.39),
        "data-stylebkd": (70.61, 91.21),
    },
    "MuScleLoRA alignment=false": {
        "data-badnets": (42.76, 87.64),
        "data-addsent": (75.22, 87.75),
        "data-hiddenkiller": (37.39, 86.88),
        "data-stylebkd": (54.17, 87.26),
    },
    "MuScleLoRA scalings=false": {
        "data-badnets": (24.89, 83.20),
        "data-addsent": (20.06, 82.81),
        "data-hiddenkiller": (38.92, 81.77),
        "data-stylebkd": (45.83, 80.62),
    },
}
"""MuScleLoRA, table 3, SST-2: without MS and GA, without MS and LR, without GA, without MS."""
