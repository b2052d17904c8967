"""What a file is by its first bytes, and by its ending: an image that is read, another, or plainly none."""

import os
import re
from functools import lru_cache

HEAD_BYTES = 132  # bytes that tell a format: DICOM's word comes last
READ = frozenset({"JPEG", "PNG", "WebP", "BMP", "GIF", "TIFF", "PPM"})  # formats that `decode` reads
_MAGIC: tuple[tuple[str, bytes], ...] = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("GIF", rb"GIF8[79]a"),
    ("WebP", rb"RIFF....WEBP"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),
    ("PPM", rb"P[1-6Ff]\s+(#|\d+\s)"),
    ("AVIF", rb"....ftypavi[fs]"),
    ("HEIC", rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"),
    ("JPEG 2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL "),
    ("JPEG XR", rb"II\xbc"),
    ("DICOM", rb".{128}DICM"),
    ("OpenEXR", rb"v/1\x01"),
    ("Radiance HDR", rb"#\?(RADIANCE|RGBE)"),
    ("Photoshop", rb"8BPS"),
    ("FITS", rb"SIMPLE  ="),
    ("NIfTI", rb"\x5c\x01\0\0|\0\0\x01\x5c"),
    ("DDS", rb"DDS "),
    ("QOI", rb"qoif"),
    ("SVG", rb"\s*(<\?xml[^>]*>\s*)?(<!--.{0,80}-->\s*)?(<!DOCTYPE svg|<svg)"),
)
MAGIC = tuple((kind, re.compile(pattern, re.DOTALL)) for kind, pattern in _MAGIC)


def kind_of(head: bytes) -> str:
    """The format of an image file by its first HEAD_BYTES, '' for what is none that one knows."""
    return next((kind for kind, pattern in MAGIC if pattern.match(head)), "")


def _endings(words: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in words.split())


IMAGE_KINDS = _endings(  # of images that are not read
    "heic heif hif avif avifs avci jp2 j2k j2c jpc jpf jpx jpm jph jls jxl jxr hdp wdp exr hdr pic rgbe psd psb xcf kra svg "
    "svgz eps ai ps emf wmf ico icns cur tga icb vda vst dds pcx dcx qoi sgi rgb rgba bw ras sun xbm xpm bpg flif jng mng "
    "fit fits fts dcm dicom ima nii nii.gz mha mhd nrrd mgh mgz mnc img img.gz raw dng cr2 cr3 crw nef nrw arw srf sr2 orf "
    "rw2 raf pef ptx srw x3f 3fr fff iiq mos mef erf kdc dcr mrw rwl gpr czi lif nd2 oib oif lsm svs ndpi scn mrxs bif vsi "
    "vms zvi dm3 dm4 mrc nitf ntf sid ecw djvu pict pct pcd wbmp jbig2 cin dpx"
)
VIDEOS = _endings("mp4 mov avi mkv webm m4v mpg mpeg wmv flv 3gp mts m2ts")
ARCHIVES = _endings("zip tar tar.gz tar.bz2 tar.xz tar.zst tgz tbz2 txz gz bz2 xz zst 7z rar lz4 cab iso")
_PACKED = (".gz", ".bz2", ".xz", ".zst")
TABLES = _endings(
    "parquet arrow feather npz npy tfrecord tfrecords lmdb mdb h5 hdf5 hdf mat pkl pickle beton zarr"
)  # may hold images
TELLING_BYTES = _endings("csv tsv json jsonl ndjson txt xls xlsx")  # may hold labels
PLAIN = TELLING_BYTES | _endings(  # what nobody takes for an image
    "md rst html htm xml yaml yml toml ini cfg conf py pyc ipynb c cc cpp h js css sh bat log pdf doc docx ppt pptx rtf tex "
    "odt db sqlite sqlite3 lnk url torrent mp3 wav flac ogg m4a pt pth ckpt safetensors onnx pb sha256 sha1 md5 sum crc "
    "ds_store tfw jgw pgw wld prj cpg shp dbf shx geojson kml aux ovr xmp thm aae pp3 dop srt vtt cls caption lock exe dll "
    "so"
)


def ending_of(name: str) -> str:
    """'.heic' of 'x.HEIC', '.nii.gz' of 'x.nii.gz', '.csv' of 'x.csv.gz'; '' for none, a number, or what is no word."""
    stem, ending = os.path.splitext(name)
    if ending in _PACKED:
        inner = os.path.splitext(stem)[1].lower()
        return inner if inner in PLAIN else inner + ending if inner + ending in IMAGE_KINDS | ARCHIVES else ending
    return _word(ending)


@lru_cache(1024)
def _word(ending: str) -> str:
    ending = ending.lower()
    return ending if re.fullmatch(r"\.(?!\d+$)[a-z0-9_]{1,10}", ending) else ""
