"""Volumes and stacks as sources of slices, of files that nibabel, pydicom, tifffile and NumPy write."""

import gzip
import importlib.util
from pathlib import Path
from threading import Barrier
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from jepakit import cli
from jepakit.config.config import overrides, resolve
from jepakit.core.errors import UserError
from jepakit.data.decoding.pixels import BadImageError
from jepakit.data.formats.folder import FolderSource
from jepakit.data.labels.table import TableSettings
from jepakit.data.loader import Loader
from jepakit.data.opening import open_source
from jepakit.data.sources import Source
from jepakit.data.volumes import source as volumes
from jepakit.data.volumes.source import VolumeSource
from jepakit.model.images import ImageSettings
from jepakit.model.masking.masks import MultiBlock

CT = "1.2.840.10008.5.1.4.1.1.2"


def opened(place: Path, **images: Any) -> Source:
    return open_source(place, images=ImageSettings.model_validate({"channels": 1, **images}))


def ramp(*shape: int, dtype: Any = np.int16) -> np.ndarray:
    """Each value is another."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def dicom(path: Path, stored: np.ndarray, *, syntax: UID = ExplicitVRLittleEndian, pixels: bytes = b"", **more: Any) -> Path:
    """A file of stored values (H, W), (n, H, W) or (H, W, 3) with further elements by name."""
    ds = pydicom.Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.file_meta.MediaStorageSOPClassUID = syntax, UID(CT)
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.SOPClassUID, ds.SeriesInstanceUID = UID(CT), more.pop("SeriesInstanceUID", generate_uid())
    colour = stored.ndim == 3 and stored.shape[2] == 3
    ds.Rows, ds.Columns = stored.shape[:2] if colour or stored.ndim == 2 else stored.shape[1:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        ds.PlanarConfiguration = 0
    elif stored.ndim == 3:
        ds.NumberOfFrames = len(stored)
    ds.BitsAllocated = ds.BitsStored = 8 * stored.itemsize
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    for name, value in more.items():
        setattr(ds, name, value)
    ds.HighBit = ds.BitsStored - 1
    ds.PixelData = pixels or stored.tobytes()
    ds["PixelData"].VR = "OW" if stored.itemsize > 1 or not pixels else "OB"
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, stored: np.ndarray, **more: Any) -> str:
    """A series (z, H, W) in files whose names are in another order than their places."""
    uid = str(generate_uid())
    for z, plane in enumerate(stored):
        where = {"ImagePositionPatient": [0, 0, 2.5 * z], "ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}
        dicom(folder / f"IM{(7 * z + 3) % len(stored):04}", plane, SeriesInstanceUID=uid, **where, **more)
    return uid


# ---- NIfTI


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_nifti_slices_show_the_patient_as_a_radiologist_sees_them_however_they_are_stored(
    tmp_path: Path, ending: str, kind: Any
) -> None:
    body = ramp(4, 5, 6, dtype=np.uint16)  # x to the right, y to the front, z to the head
    plain = kind(body, np.diag([2, 2, 3, 1.0]))
    for n, turn in enumerate([[[0, 1], [1, 1], [2, 1]], [[2, -1], [0, 1], [1, -1]], [[1, -1], [2, -1], [0, 1]]]):
        plain.as_reoriented(np.array(turn)).to_filename(tmp_path / f"{n}{ending}")
    axes = {"z": lambda k: body[::-1, ::-1, k].T, "y": lambda k: body[::-1, k, ::-1].T, "x": lambda k: body[k, ::-1, ::-1].T}
    for axis, expected in axes.items():
        source = opened(tmp_path, axis=axis, window=None)
        each = len(source) // 3
        assert each == {"z": 6, "y": 5, "x": 4}[axis]
        for n in range(3):
            for k in range(each):
                pixels = source.read(n * each + k)
                assert pixels.dtype == np.uint16
                np.testing.assert_array_equal(pixels[..., 0], expected(k))


def test_nifti_slope_time_and_every_are_read(tmp_path: Path) -> None:
    body = ramp(3, 4, 5, 2)
    image = nibabel.Nifti1Image(body, np.eye(4))
    image.header.set_slope_inter(0.5, -10)
    image.header.set_data_dtype(np.int16)
    nibabel.save(image, tmp_path / "a.nii")
    saved = np.asanyarray(nibabel.load(tmp_path / "a.nii").dataobj)  # type: ignore[attr-defined]
    source = opened(tmp_path / "a.nii", every=2, window=None)
    assert [source.title(i) for i in range(len(source))] == [f"a.nii:{z} at {t}" for t in (0, 1) for z in (0, 2, 4)]
    np.testing.assert_allclose(source.read(4)[..., 0], saved[::-1, ::-1, 2, 1].T, rtol=1e-6)
    assert source.read(4).dtype == np.float32


def test_percentiles_are_of_the_volume_and_the_same_whatever_is_read_first(tmp_path: Path) -> None:
    body = np.random.default_rng(0).normal(100, 30, (20, 24, 12)).astype(np.float32)
    body[0, 0, 0] = np.nan  # outside of the body
    nibabel.Nifti1Image(body, np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    low, high = np.nanpercentile(body, [0.5, 99.5])
    expected = ((body - low) / (high - low)).clip(0, 1)
    expected[0, 0, 0] = 0
    for first in (0, 11):
        source = opened(tmp_path)
        source.read(first)
        np.testing.assert_allclose(source.read(0)[..., 0], expected[::-1, ::-1, 0].T, atol=1e-6)
    pair = opened(tmp_path, window=[60, 140]).read(5)[..., 0]
    np.testing.assert_allclose(pair, ((body[::-1, ::-1, 5].T - 60) / 80).clip(0, 1), atol=1e-6)


# ---- DICOM


def test_a_series_is_ordered_by_place_and_its_values_are_rescaled(tmp_path: Path) -> None:
    stored = ramp(5, 6, 7)
    series(tmp_path / "ct", stored, RescaleSlope=2, RescaleIntercept=-1024)
    source = opened(tmp_path, window=None)
    for z in range(5):
        pixels = source.read(z)
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels[..., 0], stored[z] * 2.0 - 1024)
    assert source.title(0) == "ct/IM0003" and isinstance(source, VolumeSource) and source.volumes[0].name == "ct"
    side = opened(tmp_path, window=None, axis="x", every=3)
    assert len(side) == 3
    np.testing.assert_array_equal(side.read(1)[..., 0], stored[::-1, :, 3] * 2.0 - 1024)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_the_window_that_a_file_names_is_pydicoms(tmp_path: Path, function: str, polarity: str) -> None:
    stored = np.linspace(-2048, 2047, 96).astype(np.int16).reshape(8, 12)
    more = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": [40, 300], "WindowWidth": [400, 9]}
    path = dicom(tmp_path / "a.dcm", stored, BitsStored=12, PhotometricInterpretation=polarity, VOILUTFunction=function, **more)
    shown = apply_windowing(stored.astype(np.float64) - 1024, pydicom.dcmread(path))
    expected = (shown - (-2048 - 1024)) / 4095  # pydicom's go over what twelve signed bits hold
    expected = 1 - expected if polarity == "MONOCHROME1" else expected
    for window in ("auto", "dicom"):
        np.testing.assert_allclose(opened(path, window=window).read(0)[..., 0], expected, atol=1e-5)


def test_twelve_of_sixteen_bits_keep_their_values_and_inverted_ones_are_turned(tmp_path: Path) -> None:
    stored = ramp(6, 7, dtype=np.uint16) * 97
    overlay = stored | np.uint16(0xA000)  # what old files keep in the bits above
    source = opened(dicom(tmp_path / "a.dcm", overlay, BitsStored=12), window=None)
    assert source.read(0).dtype == np.uint16
    np.testing.assert_array_equal(source.read(0)[..., 0], stored)
    turned = opened(dicom(tmp_path / "b.dcm", overlay, BitsStored=12, PhotometricInterpretation="MONOCHROME1"), window=None)
    np.testing.assert_array_equal(turned.read(0)[..., 0], 4095 - stored)
    with pytest.raises(UserError, match="names no window"):
        opened(tmp_path / "a.dcm", window="dicom")


def test_frames_colours_palettes_and_run_lengths(tmp_path: Path) -> None:
    frames = ramp(4, 5, 6, dtype=np.uint16)
    source = opened(dicom(tmp_path / "many.dcm", frames), window=None)
    assert [source.title(i) for i in range(4)] == [f"many.dcm:{i}" for i in range(4)]
    np.testing.assert_array_equal(np.stack([source.read(i)[..., 0] for i in range(4)]), frames)
    colours = ramp(5, 6, 3, dtype=np.uint8)
    np.testing.assert_array_equal(opened(dicom(tmp_path / "rgb.dcm", colours)).read(0), colours)
    packed = pydicom.dcmread(dicom(tmp_path / "rle.dcm", frames))
    packed.compress(RLELossless)
    packed.save_as(tmp_path / "rle.dcm")
    source = opened(tmp_path / "rle.dcm", window=None)
    np.testing.assert_array_equal(source.read(2)[..., 0], frames[2])
    table = {f"{c}PaletteColorLookupTableDescriptor": [30, 0, 8] for c in ("Red", "Green", "Blue")}
    lookup = {"Red": ramp(30, dtype=np.uint8), "Green": 2 * ramp(30, dtype=np.uint8), "Blue": 3 * ramp(30, dtype=np.uint8)}
    table |= {f"{c}PaletteColorLookupTableData": values.tobytes() for c, values in lookup.items()}  # type: ignore[misc]
    indices = ramp(5, 6, dtype=np.uint8)
    path = dicom(tmp_path / "palette.dcm", indices, PhotometricInterpretation="PALETTE COLOR", **table)
    np.testing.assert_array_equal(opened(path).read(0), np.stack([v[indices] for v in lookup.values()], 2))


def test_frames_of_an_enhanced_file_have_rescale_and_window_of_their_own(tmp_path: Path) -> None:
    groups = []
    for n in range(2):
        value, window = pydicom.Dataset(), pydicom.Dataset()
        value.RescaleSlope, value.RescaleIntercept = n + 1, 5
        window.WindowCenter, window.WindowWidth = 20.5, 41
        group = pydicom.Dataset()
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = Sequence([value]), Sequence([window])
        groups.append(group)
    frames = ramp(2, 3, 4, dtype=np.uint16)
    source = opened(dicom(tmp_path / "e.dcm", frames, PerFrameFunctionalGroupsSequence=Sequence(groups)))
    for n in range(2):
        np.testing.assert_allclose(source.read(n)[..., 0], ((frames[n] * (n + 1.0) + 5) / 40).clip(0, 1), atol=1e-6)


def test_headers_are_read_by_several_threads_in_the_files_order_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        dicom(tmp_path / f"{i}.dcm", np.full((4, 4), i, np.uint16), SeriesInstanceUID=f"1.{i}")
    (tmp_path / "3.dcm").write_bytes(b"no DICOM at all")
    real, met = pydicom.dcmread, Barrier(2, timeout=60)

    def read(path: Path, **how: Any) -> Any:
        if how.get("stop_before_pixels") and Path(path).name in ("0.dcm", "1.dcm"):
            met.wait()  # one thread alone would wait in vain
        return real(path, **how)

    monkeypatch.setattr(pydicom, "dcmread", read)
    monkeypatch.setattr("jepakit.data.volumes.dicom._MANY", 6)
    source = opened(tmp_path)
    assert [source.title(i) for i in range(6)] == [f"{i}.dcm" for i in range(6)]
    assert "DICOM headers 6/6" in capsys.readouterr().err
    with pytest.raises(BadImageError):
        source.read(3)


def test_dicom_without_pixels_is_left_out_and_said(tmp_path: Path) -> None:
    series(tmp_path, ramp(3, 4, 5))
    report = pydicom.dcmread(tmp_path / "IM0000")
    del report.PixelData, report.Rows
    report.save_as(tmp_path / "report.dcm")
    (tmp_path / "notes.txt").write_text("none of ours")
    dicom(tmp_path / "seg.dcm", ramp(4, 5), Modality="SEG")
    source = opened(tmp_path)
    assert len(source) == 3 and source.notes == (
        "2 DICOM files left out, holding no image (structures, segmentations, doses, reports, directories)",
    )


def test_files_of_scanners_that_the_libraries_ship_are_read(tmp_path: Path) -> None:
    shipped = Path(pydicom.__file__).parent / "data" / "test_files"
    for name in ("CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"):
        ds, source = pydicom.dcmread(shipped / name), opened(shipped / name, window=None)
        expected = ds.pixel_array * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
        np.testing.assert_allclose(source.read(0)[..., 0], expected)
        assert 0 <= opened(shipped / name).read(0).min() < opened(shipped / name).read(0).max() <= 1
    anatomy = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"
    body = nibabel.as_closest_canonical(nibabel.load(anatomy)).get_fdata()  # type: ignore[attr-defined]
    source = opened(anatomy, window=None)
    assert len(source) == body.shape[2]
    for z in (0, 12, 24):
        np.testing.assert_allclose(source.read(z)[..., 0], body[::-1, ::-1, z].T, rtol=1e-6)


# ---- stacks


def test_tiff_stacks_of_every_writer_are_cut_only_where_an_axis_is_named(tmp_path: Path) -> None:
    stack, colour = ramp(4, 8, 9, dtype=np.uint16), ramp(4, 2, 8, 9, dtype=np.uint8)
    ways: dict[str, dict[str, Any]] = {
        "plain": {"metadata": None},
        "shaped": {},
        "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
        "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
        "deflate": {"compression": "zlib", "ome": True, "metadata": {"axes": "ZYX"}},
        "big": {"bigtiff": True, "byteorder": ">"},
    }
    for name, how in ways.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", stack, photometric="minisblack", **how)
        source = opened(tmp_path / f"{name}.tif", axis="z")
        assert [source.title(i) for i in range(4)] == [f"{name}.tif:{z}" for z in range(4)]
        assert source.read(1).dtype == np.uint16
        np.testing.assert_array_equal(np.stack([source.read(i)[..., 0] for i in range(4)]), stack)
        np.testing.assert_array_equal(opened(tmp_path / f"{name}.tif", axis="y", every=3).read(1)[..., 0], stack[::-1, 3])
    assert len(open_source(tmp_path)) == len(ways) and isinstance(open_source(tmp_path), FolderSource)
    tifffile.imwrite(tmp_path / "two.ome.tif", colour, ome=True, photometric="minisblack", metadata={"axes": "ZCYX"})
    two = opened(tmp_path / "two.ome.tif", axis="z", channels=2)
    np.testing.assert_array_equal(two.read(3), colour[3].transpose(1, 2, 0))
    shown = opened(tmp_path / "plain.tif", axis="z", window="percentiles").read(0)
    low, high = np.percentile(stack, [0.5, 99.5])
    np.testing.assert_allclose(shown[..., 0], ((stack[0] - low) / (high - low)).clip(0, 1), atol=1e-6)


def test_arrays_of_numpy_are_volumes_where_an_axis_is_named_and_never_unpickled(tmp_path: Path) -> None:
    gray, bands = ramp(4, 8, 9, dtype=np.uint8), ramp(4, 5, 8, 8, dtype=np.float32)
    np.save(tmp_path / "a.npy", gray)
    np.savez(tmp_path / "b.npz", volume=gray, label=np.arange(3))
    np.savez_compressed(tmp_path / "c.npz", gray)
    source = opened(tmp_path, axis="y")
    assert len(source) == 24
    for n in range(3):
        np.testing.assert_array_equal(source.read(8 * n + 2)[..., 0], gray[::-1, 2])
    np.save(tmp_path / "d.npy", bands)
    np.testing.assert_array_equal(opened(tmp_path / "d.npy", axis="z", channels=5).read(1), bands[1].transpose(1, 2, 0))
    np.save(tmp_path / "e.npy", np.array([{"a": 1}] * 3, object), allow_pickle=True)
    with pytest.raises(UserError, match=r"e\.npy: no array \(z, y, x\)"):
        opened(tmp_path / "e.npy", axis="z")


# ---- labels, groups, passes


def labelled(tmp_path: Path, each: int = 10) -> VolumeSource:
    for name, shift in (("sick", 0), ("well", 500)):
        for n in range(each):
            (tmp_path / name).mkdir(exist_ok=True)
            nibabel.Nifti1Image(ramp(8, 8, 3 + n % 3) + shift, np.eye(4)).to_filename(tmp_path / name / f"{n}.nii.gz")
    source = opened(tmp_path)
    assert isinstance(source, VolumeSource)
    return source


def test_a_volume_is_a_group_and_no_split_divides_it(tmp_path: Path) -> None:
    source = labelled(tmp_path)
    labels = source.labels
    assert labels is not None and labels.classes == ("sick", "well") and labels.groups is not None
    assert labels.group_names[0] == "sick/0.nii.gz" and len(labels.group_names) == 20
    for group in range(20):
        mine = labels.groups == group
        assert len({*labels.values[mine].tolist()}) == len({*labels.test[mine].tolist()}) == 1
        assert {source.title(i).partition(":")[0] for i in np.flatnonzero(mine)} == {labels.group_names[group]}
    assert len({*labels.groups[labels.test].tolist()}) == 4  # a fifth of each class's volumes


@pytest.mark.parametrize("named", ["scans/{}.nii.gz", "{}.nii.gz", "{}"])
def test_a_row_of_a_table_is_of_all_slices_of_its_volume(tmp_path: Path, named: str) -> None:
    (tmp_path / "scans").mkdir()
    lines = ["scan,dx"]
    for n in range(20):
        nibabel.Nifti1Image(ramp(8, 8, 3 + n % 3), np.eye(4)).to_filename(tmp_path / "scans" / f"s{n}.nii.gz")
        lines.append(f"{named.format(f's{n}')},{'sick' if n % 2 else 'well'}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    source = open_source(tmp_path / "scans", table=TableSettings(file=str(tmp_path / "t.csv"), labels="dx"))
    labels, of = source.labels, [int(source.title(i).partition(".")[0][1:]) for i in range(len(source))]
    assert labels is not None and labels.groups is not None and set(labels.group_names) == {f"s{n}.nii.gz" for n in range(20)}
    assert [labels.classes[v] for v in labels.values] == ["sick" if n % 2 else "well" for n in of]
    assert [labels.group_names[g] for g in labels.groups] == [f"s{n}.nii.gz" for n in of]
    held = {labels.group_names[g] for g in labels.groups[labels.test]}
    assert held and not held & {labels.group_names[g] for g in labels.groups[~labels.test]}
    assert any("of 20" in note for note in source.notes)


def test_a_volume_that_must_be_decoded_whole_is_decoded_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "VOLUME_MEMORY", 2000)  # about three of the twenty
    source = labelled(tmp_path)
    assert source.blocks.sequential and 1 <= source.blocks.at_once <= 3
    decodes: list[str] = []
    real = gzip.open

    def counted(path: Any, *args: Any) -> Any:
        decodes.append(str(path))
        return real(path, *args)

    monkeypatch.setattr(gzip, "open", counted)
    images = ImageSettings(size=8, channels=1)
    loader = Loader(source, images, MultiBlock(min_keep=1), (2, 2), 8, 0, threads=1)
    batches = [loader.batch(step) for step in range(loader.steps_per_epoch)]
    assert len(decodes) <= 22  # at group boundaries a volume may come again
    again = Loader(labelled(tmp_path), images, MultiBlock(min_keep=1), (2, 2), 8, 0, threads=3)
    assert all((again.batch(step).images == batch.images).all() for step, batch in enumerate(batches))


def test_a_slice_of_a_file_that_is_not_compressed_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nibabel.Nifti1Image(ramp(8, 8, 5), np.eye(4)).to_filename(tmp_path / "a.nii")
    series(tmp_path / "ct", ramp(5, 8, 8))
    dicom(tmp_path / "frames.dcm", ramp(4, 8, 8))
    np.save(tmp_path / "a.npy", ramp(5, 8, 8, dtype=np.uint8))
    tifffile.imwrite(tmp_path / "a.tif", ramp(5, 8, 8, dtype=np.uint8), photometric="minisblack", compression="zlib")
    source = opened(tmp_path, axis="z")
    assert isinstance(source, VolumeSource) and len(source) == 24
    assert not any(volume.whole for volume in source.volumes) and not source.blocks.sequential


# ---- what goes wrong


def test_broken_volumes_are_named_bad_images_and_the_others_are_read(tmp_path: Path) -> None:
    good = nibabel.Nifti1Image(ramp(16, 16, 4), np.eye(4))
    good.to_filename(tmp_path / "good.nii.gz")
    good.to_filename(tmp_path / "cut.nii")
    (tmp_path / "cut.nii").write_bytes((tmp_path / "cut.nii").read_bytes()[:1000])
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "good.nii.gz").read_bytes()[:-500])
    (tmp_path / "text.nii").write_text("no volume")
    dicom(tmp_path / "cut.dcm", ramp(8, 9))
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "cut.dcm").read_bytes()[:-50])
    dicom(tmp_path / "j2k.dcm", ramp(8, 9), syntax=JPEG2000Lossless, pixels=encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 60]))
    big = dicom(tmp_path / "bomb.dcm", ramp(8, 9))
    ds = pydicom.dcmread(big)
    ds.Rows = ds.Columns = 60000
    ds.save_as(big)
    source = opened(tmp_path)
    said: dict[str, str] = {}
    for i in range(len(source)):
        try:
            source.read(i)
        except BadImageError as error:
            said[source.title(i).partition(":")[0]] = str(error)
    assert set(said) == {"cut.nii", "cut.nii.gz", "text.nii", "cut.dcm", "j2k.dcm", "bomb.dcm"}
    assert "broken or cut" in said["cut.nii"] and "broken or cut" in said["cut.nii.gz"] and "broken or cut" in said["cut.dcm"]
    assert "JPEG 2000" in said["j2k.dcm"] and "cannot be decoded here" in said["j2k.dcm"]
    assert "decompression bomb" in said["bomb.dcm"]


def test_a_volume_that_claims_more_than_memory_is_a_bomb(tmp_path: Path) -> None:
    nibabel.Nifti1Image(ramp(4, 4, 4), np.eye(4)).to_filename(tmp_path / "good.nii.gz")
    image = nibabel.Nifti1Image(ramp(4, 4, 4), np.eye(4))
    raw = bytearray(image.to_bytes())
    raw[42:48] = np.array([9000, 9000, 32000], "<i2").tobytes()  # dim[1:4]
    (tmp_path / "bomb.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    source = opened(tmp_path)
    assert len(source) == 5
    with pytest.raises(BadImageError, match="too much for memory"):
        source.read(0)


def test_a_deflated_dicom_and_cut_stacks_are_named(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", ramp(8, 9))
    ds = pydicom.dcmread(path)
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
    ds.save_as(path)
    with pytest.raises(UserError, match="deflated as a whole: save it without"):
        opened(path)
    tifffile.imwrite(tmp_path / "a.tif", ramp(5, 64, 64, dtype=np.uint16), photometric="minisblack")
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:9000])
    with pytest.raises(UserError, match=r"no readable image in .*a\.tif"):
        opened(tmp_path / "a.tif", axis="z")


def test_claims_beyond_a_files_bytes_are_one_bad_image_and_pages_of_other_sizes_are_said(tmp_path: Path) -> None:
    ds = pydicom.dcmread(dicom(tmp_path / "many.dcm", ramp(3, 64, 64)))
    ds.NumberOfFrames = 1_000_000
    ds.save_as(tmp_path / "many.dcm")
    with pytest.raises(UserError, match="claims 1000000 frames in"):
        opened(tmp_path / "many.dcm")
    raw = bytearray(nibabel.Nifti1Image(ramp(4, 4, 4), np.eye(4)).to_bytes())
    raw[108:112] = np.array([3e9], "<f4").tobytes()  # vox_offset
    (tmp_path / "far.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    with pytest.raises(UserError, match="its values begin at byte 3000000000"):
        opened(tmp_path / "far.nii.gz")
    with tifffile.TiffWriter(tmp_path / "mixed.tif") as writer:
        for side in (32, 32, 16):
            page = ramp(side, side, dtype=np.int16) - 500
            writer.write(page, photometric="minisblack", metadata=None, contiguous=False)
    source = opened(tmp_path / "mixed.tif", axis="z")
    assert len(source) == 2 and "1 page of 1 TIFF (mixed.tif) left out" in source.notes[0]
    np.testing.assert_array_equal(source.read(1)[..., 0], ramp(32, 32).astype(np.float32) - 500)


def test_what_reads_them_is_asked_for_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nibabel.Nifti1Image(ramp(4, 4, 4), np.eye(4)).to_filename(tmp_path / "a.nii")
    real = importlib.util.find_spec
    monkeypatch.setattr(volumes, "find_spec", lambda name: None if name == "nibabel" else real(name))
    with pytest.raises(UserError, match=r"holds NIfTI volumes, which need nibabel: pip install 'jepakit\[volumes\]'"):
        opened(tmp_path)


def test_images_beside_volumes_stay_the_set_unless_an_axis_is_named(tmp_path: Path) -> None:
    nibabel.Nifti1Image(ramp(8, 8, 4), np.eye(4)).to_filename(tmp_path / "a.nii")
    Image.fromarray(ramp(8, 8, dtype=np.uint8)).save(tmp_path / "b.png")
    source = opened(tmp_path)
    assert len(source) == 1 and "images.axis=z" in " ".join(source.notes)
    plain = tmp_path / "plain"
    plain.mkdir()
    Image.fromarray(ramp(8, 8, dtype=np.uint8)).save(plain / "b.png")
    assert opened(plain, axis="x").notes == (f"images.axis=x has no effect: {plain} holds no volumes",)
    (plain / "b.png").unlink()
    source = opened(tmp_path, axis="z")
    assert len(source) == 4 and "1 image file left out (b.png)" in source.notes[0]


@pytest.mark.parametrize("words", ["images.axis=w", "images.window=[5,3]", "images.every=0", "images.window=mine"])
def test_settings_that_mean_nothing_are_one_sentence(words: str) -> None:
    with pytest.raises(UserError, match=r"images(\.|: )(axis|window|every)"):
        resolve(overrides(words))


def test_a_run_on_volumes_is_checked_trained_resumed_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "scans", tmp_path / "run"
    data.mkdir()
    labelled(data)
    tiny = "encoder.width=16 encoder.depth=1 encoder.heads=2 encoder.patch_size=2 predictor.width=8 predictor.depth=1"
    tiny += " masking.min_keep=1 optim.batch_size=8 run.threads=1 run.probe_images=0 images.size=8"
    words = [*tiny.split(), "images.axis=x", "images.every=2"]
    cli.main(["data", "check", str(data), *words[-2:]])
    assert "samples           80" in capsys.readouterr().out
    cli.main(["pretrain", "--data", str(data), "--out", str(run), *words, "optim.steps=2"])
    config = (run / "config.yaml").read_text()
    assert "axis: x" in config and "every: 2" in config and "depth: float32" in config
    cli.main(["evaluate", str(run), "--tasks", "knn", "symmetry=mirror"])
    said = (run / "evaluation" / "knn.json").read_text()
    assert '"n_test": 16' in said and '"independent": 4' in said  # four slices of each of four volumes
