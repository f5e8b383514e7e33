"""What a machine costs by the hour, from a file that the user gives; nothing here knows a price.

    currency: EUR
    prices:
      Intel(R) Xeon(R) Processor, 2 cores: 0.09
      NVIDIA H100 80GB HBM3: 2.40

A price is that of the whole machine as it is used here. A name is a machine's own (`edgeslm plan-training` prints it),
or any other that `--machine` then gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from edgeslm.errors import DataError

EXAMPLE = "currency: EUR, prices: {NAME: 0.09}"


@dataclass(frozen=True)
class Price:
    name: str
    per_hour: float
    currency: str

    def cost(self, seconds: float) -> float:
        return self.per_hour * seconds / 3600

    def tokens_per_unit(self, tokens_per_s: float) -> float:
        """Tokens for one unit of the currency."""
        return tokens_per_s * 3600 / self.per_hour

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def load(path: Path) -> dict[str, Price]:
    """{name: price}. Raises DataError for a file that is missing, damaged or says anything else than prices."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or set(data) != {"currency", "prices"}:
        raise DataError(f"{path}: a file of prices has the keys currency and prices, as in {EXAMPLE}")
    currency, prices = data["currency"], data["prices"]
    if not isinstance(currency, str) or not currency.strip():
        raise DataError(f"{path}: currency is a word such as EUR, not {currency!r}")
    if not isinstance(prices, dict) or not prices:
        raise DataError(f"{path}: prices names machines and what each costs by the hour, as in {EXAMPLE}")
    for name, value in prices.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise DataError(f"{path}: the price of '{name}' is an amount an hour above 0, not {value!r}")
    return {str(name): Price(str(name), float(value), currency.strip()) for name, value in prices.items()}


def price_of(prices: dict[str, Price], names: Sequence[str], machine: str | None) -> Price | None:
    """The price of this machine: the entry that `machine` names, else the one that has one of its own `names` (letters
    large or small). None where there is none. Raises DataError for a `machine` that has no price."""
    if machine is not None:
        if machine not in prices:
            raise DataError(f"--machine {machine}: has no price; the file names {', '.join(prices)}")
        return prices[machine]
    folded = {name.casefold().strip(): price for name, price in prices.items()}
    return next((folded[n.casefold().strip()] for n in names if n.casefold().strip() in folded), None)
