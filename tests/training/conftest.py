"""Images that tests of runs with several settings share."""

import pytest

from noise import save_noise


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of 16 small pictures of noise."""
    return save_noise(tmp_path_factory.mktemp("photos"), 16)
