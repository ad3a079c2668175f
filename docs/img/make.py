"""Take the pictures of the README from a run: ``python docs/img/make.py RUN`` (needs selenium, Chromium and its driver).

Rebuilds RUN's report first, then writes beside this file: its first screen at 1280 x 720 in light and dark, and its first
A4 sheet as printed.
"""

from __future__ import annotations

import base64
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from reports import ReportError, build_report

HERE = Path(__file__).parent
SCREEN, SHEET = (1280, 720), (703, 1020)  # px; the sheet is A4 less its margins at 96 px an inch
PICTURES = (
    ("report-first-screen.webp", SCREEN, "light", ""),
    ("report-first-screen-dark.webp", SCREEN, "dark", ""),
    ("report-print.webp", SHEET, "light", "print"),
)
QUALITY = 82  # of WebP, per cent


def photograph(page: Path, folder: Path) -> list[Path]:
    """Every picture of ``PICTURES`` of ``page``, written into ``folder``."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    with tempfile.TemporaryDirectory() as profile:
        for flag in ("--headless", "--no-sandbox", "--disable-dev-shm-usage", f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            return [_take(driver, page, folder / name, size, scheme, media) for name, size, scheme, media in PICTURES]
        finally:
            driver.quit()


def _take(driver: Any, page: Path, out: Path, size: tuple[int, int], scheme: str, media: str) -> Path:
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})
    driver.get(page.resolve().as_uri())
    taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": QUALITY})
    out.write_bytes(base64.b64decode(taken["data"]))
    return out


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("name one run directory: python docs/img/make.py RUN")
    try:
        for picture in photograph(build_report(Path(sys.argv[1])), HERE):
            print(picture, picture.stat().st_size, "bytes")
    except (ReportError, ValueError) as error:
        sys.exit(str(error))
