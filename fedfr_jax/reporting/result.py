"""A finished run, read from its work directory."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING, Any

from fedfr_jax.errors import InputError
from fedfr_jax.reporting import tables
from fedfr_jax.reporting.result_table import ResultTable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from fedfr_jax.reporting import plots


class Result:
    """A finished run; plain dictionaries, arrays, tables and plots.

    :func:`fedfr_jax.open_run` of its folder gives the models.

    Attributes:
      folder: the work directory.
      summary: as in ``summary.json``.
      history: records of ``metrics.jsonl``.
      rocs: protocol -> model -> (far, tar).
      per_client: metric -> model -> (C,) values.
    """

    def __init__(self, folder: str | os.PathLike):
        from fedfr_jax.reporting import html  # noqa: PLC0415 (matplotlib takes a second)

        self.folder = pathlib.Path(folder).expanduser()
        self._data = html.load_report_data(self.folder)
        self.summary = dict(self._data.summary)
        self.history = list(self._data.metrics)
        self.rocs, self.per_client = self._data.rocs, self._data.per_client

    def tables(self) -> list[ResultTable]:
        """The closing tables; a notebook shows each as a table."""
        return tables.closing_tables(self.summary)

    def plots(self) -> dict[str, plots.Plot]:
        """Name -> plot, those of the report; a notebook shows each as an image."""
        from fedfr_jax.reporting import html  # noqa: PLC0415 (see above)

        found = html.all_plots(self._data)
        return {plot.name: plot for drawn in found.values() for plot in drawn}

    def figures(self) -> dict[str, Figure]:
        """Name -> matplotlib figure of :meth:`plots`, to change or to save."""
        return {name: plot.figure for name, plot in self.plots().items()}

    def rounds(self) -> pd.DataFrame:
        """One row per round: loss terms, images, seconds and so on."""
        rows = [row for row in self.history if row["kind"] == "round"]
        return _pandas().DataFrame(rows).drop(columns="kind").set_index("round")

    def evaluations(self) -> pd.DataFrame:
        """One row per evaluated round and model; the metrics are columns."""
        rows = [row for row in self.history if row["kind"] == "evaluation"]
        return _pandas().DataFrame(rows).drop(columns="kind").set_index(["round", "model"])

    def clients(self) -> pd.DataFrame:
        """One row per evaluated client; columns are (metric, model)."""
        columns: dict[tuple[str, str], Any] = {
            (metric, model): values
            for metric, models in self.per_client.items()
            for model, values in models.items()
        }
        return _pandas().DataFrame(columns)


def _pandas():
    try:
        import pandas  # noqa: PLC0415 - optional
    except ImportError:
        raise InputError(
            "pandas is not installed; pip install pandas, or use Result.history and "
            "Result.per_client, which do not need it"
        ) from None
    return pandas
