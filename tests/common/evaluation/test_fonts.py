import matplotlib
import numpy as np
import pytest
from matplotlib import font_manager

from common.evaluation.fonts import FIRST, characters, find_fonts
from common.training.predict_windows import draw_caption

STIX = f"{matplotlib.get_data_path()}/fonts/ttf/STIXGeneral.ttf"


def test_the_font_of_matplotlib_has_most_scripts() -> None:
    assert find_fonts("Straßenbahn трамвай τραμ\n 45 %") == dict([FIRST])


def test_another_font_has_what_the_first_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = chr(min(characters(STIX) - characters(FIRST[1])))
    fonts = find_fonts(f"a{lacking}")
    assert next(iter(fonts)) == FIRST[0]
    (second,) = list(fonts.values())[1:]
    assert ord(lacking) in characters(second)
    image = np.zeros((90, 90, 3), np.uint8)
    drawn = draw_caption(image, lacking)
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [])
    find_fonts.cache_clear()
    with pytest.warns(UserWarning, match=f"no installed font has {lacking}"):
        box = draw_caption(image, lacking)
    find_fonts.cache_clear()
    assert (drawn != box).any()


def test_a_file_that_is_no_font_has_no_characters(tmp_path) -> None:
    (tmp_path / "font.ttf").write_bytes(b"no font")
    assert not characters(str(tmp_path / "font.ttf"))
