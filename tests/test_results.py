"""The arrays behind the notebooks' figures, against those that were accepted.

nbval compares text and never looks at a picture, so the numbers under the pictures are compared
here. The notebooks write them when they run; `make test` runs them first.
"""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from patchlib.notebooks import BUILD

ACCEPTED = Path(__file__).parent / "accepted"
NAMES = sorted(path.stem for path in ACCEPTED.glob("*.nc"))
# Two processors differ in the last digits of float32; a change of method differs by far more.
RELATIVE, ABSOLUTE = 1e-3, 2e-4

pytestmark = pytest.mark.results


def test_there_are_results_to_compare():
    written = sorted(path.stem for path in (BUILD / "results").glob("*.nc"))
    assert NAMES and NAMES == written, (
        "the notebooks wrote other results than those in tests/accepted: run `make run`, look at "
        "the difference, and copy _build/results/*.nc there if it is meant"
    )


@pytest.mark.parametrize("name", NAMES)
def test_results_are_those_accepted(name):
    accepted = xr.load_dataset(ACCEPTED / f"{name}.nc")
    written = xr.load_dataset(BUILD / "results" / f"{name}.nc")
    assert dict(written.sizes) == dict(accepted.sizes)
    assert sorted(written.variables) == sorted(accepted.variables)
    for variable in accepted.variables:
        a, b = accepted[variable].values, written[variable].values
        if np.issubdtype(a.dtype, np.number):
            np.testing.assert_allclose(b, a, rtol=RELATIVE, atol=ABSOLUTE, err_msg=str(variable))
        else:
            assert b.tolist() == a.tolist()
