"""Every image becomes the same upright RGB pixels however it is stored, or is refused with its file and the reason."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from rankwise.errors import DataError
from rankwise.rows.images.decode import MOST_PIXELS, decode, record_of
from rankwise.rows.text.example import ImageContent

WHERE = "pets/cat/1.png"
COLORS = np.zeros((16, 24, 3), np.uint8)
COLORS[:8, :12], COLORS[:8, 12:], COLORS[8:, :12], COLORS[8:, 12:] = (255, 0, 0), (0, 255, 0), (0, 0, 255), (9, 9, 9)


def file_of(picture, kind="PNG", **how):
    written = io.BytesIO()
    picture.save(written, kind, **how)
    return written.getvalue()


def decoded(source):
    image = decode(ImageContent(source), WHERE)
    assert image.picture.mode == "RGB"
    assert image.picture.size == (image.width, image.height)
    return np.asarray(image.picture), image.notes


def refusal(source):
    with pytest.raises(DataError) as refused:
        decode(ImageContent(source), WHERE)
    message = str(refused.value)
    assert message.startswith(f"{WHERE}: ")
    assert message.endswith(".")
    assert "\n" not in message
    return message.removeprefix(f"{WHERE}: ")


def png(width, height, depth, kind, content):
    """A PNG file as it is written by hand."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(content, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + data


# What is read as it is


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_every_lossless_format_gives_the_same_pixels(kind):
    pixels, _ = decoded(file_of(Image.fromarray(COLORS), kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert (pixels == COLORS).all()


def test_a_jpeg_and_arrays_are_read():
    pixels, notes = decoded(file_of(Image.fromarray(COLORS), "JPEG", quality=95, subsampling=0))
    assert np.abs(pixels.astype(int) - COLORS).mean() < 8
    assert notes == ()
    assert (decoded(COLORS)[0] == COLORS).all()
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for pixels in (gray, gray[..., None]):
        assert (decoded(pixels)[0] == gray[..., None]).all()
        assert decoded(pixels)[1] == ("converted from grayscale",)


def test_bytes_that_fill_up_a_jpeg_before_a_marker_are_passed_over():
    written = file_of(Image.fromarray(COLORS), "JPEG", quality=95, subsampling=0)
    filled = written[:2] + b"\xff\xff" + written[2:]
    assert (decoded(filled)[0] == decoded(written)[0]).all()


def test_a_file_is_read_as_its_bytes_are(tmp_path):
    (tmp_path / "1.png").write_bytes(file_of(Image.fromarray(COLORS)))
    assert (decoded(tmp_path / "1.png")[0] == COLORS).all()
    assert decoded(tmp_path / "1.png")[1] == ()


# What is converted


def rgb(*color, kind="RGB"):
    return Image.new(kind, (8, 8), color if len(color) > 1 else color[0])


@pytest.mark.parametrize(
    ("source", "color", "note"),
    [
        (file_of(rgb(0, 255, 255, 0, kind="CMYK"), "TIFF"), (255, 0, 0), "converted from CMYK"),
        (file_of(rgb(255, 0, 0).convert("P", palette=Image.Palette.ADAPTIVE)), (255, 0, 0), "converted from a palette"),
        (file_of(rgb(1, kind="1")), (255, 255, 255), "converted from black and white (1 bit)"),
        (file_of(rgb(77, kind="L")), (77, 77, 77), "converted from grayscale"),
        (file_of(rgb(200, 0, 0, 0, kind="RGBA")), (255, 255, 255), "laid over white where they are transparent"),
        (png(8, 8, 16, 2, (b"\0" + b"\x12\x34" * 24) * 8), (18, 18, 18), "reduced from 16 to 8 bits for each colour"),
        (png(8, 8, 16, 0, (b"\0" + b"\x80\x80" * 8) * 8), (128, 128, 128), "scaled from 16 bits"),
        (png(8, 8, 16, 0, (b"\0" + b"\x0f\xff" * 8) * 8), (16, 16, 16),
         "scaled from 16 bits, of which they use the lowest 12"),
        (file_of(rgb(0.5, kind="F"), "TIFF"), (128, 128, 128), "scaled from decimals between 0 and 1"),
    ],
    ids=["CMYK", "palette", "1 bit", "gray", "alpha", "16-bit colour", "16 bits", "12 bits", "decimals"],
)  # fmt: skip
def test_another_kind_of_pixel_is_converted_and_noted(source, color, note):
    pixels, notes = decoded(source)
    assert (pixels == color).all()
    assert notes == (note,)


def test_a_jpeg_in_cmyk_is_converted():
    pixels, notes = decoded(file_of(rgb(0, 255, 255, 0, kind="CMYK"), "JPEG"))
    assert np.abs(pixels.astype(int) - (255, 0, 0)).max() < 8
    assert notes == ("converted from CMYK",)


def test_alpha_is_laid_over_white_in_its_share():
    pixels, notes = decoded(file_of(Image.fromarray(np.full((8, 8, 4), (0, 0, 0, 51), np.uint8))))
    assert (pixels == 204).all()
    assert notes == ("laid over white where they are transparent",)
    assert decoded(file_of(Image.fromarray(np.full((8, 8, 4), 255, np.uint8))))[1] == ()
    palette = rgb(200, 0, 0).quantize(4)
    both = decoded(file_of(palette, transparency=palette.getpixel((0, 0))))
    assert (both[0] == 255).all()
    assert both[1] == ("converted from a palette", "laid over white where they are transparent")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_rotated_image_is_turned_upright(orientation, kind):
    upright = Image.fromarray(COLORS)
    stored = {number: upright.transpose(turn) for number, turn in zip(range(2, 9), (0, 3, 1, 5, 2, 6, 4), strict=True)}
    stored[1] = upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    how = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    pixels, notes = decoded(file_of(stored[orientation], kind, exif=exif, **how))
    assert pixels.shape == COLORS.shape
    assert np.abs(pixels.astype(int) - COLORS).mean() < 8
    assert notes == (("turned upright (EXIF orientation)",) if orientation > 1 else ())


def test_a_wrong_extension_is_noted(tmp_path):
    (tmp_path / "1.png").write_bytes(file_of(Image.fromarray(COLORS), "JPEG"))
    assert decoded(tmp_path / "1.png")[1] == ("named .png, but in the format JPEG",)


def test_damaged_metadata_does_not_hide_whole_pixels():
    damaged = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30
    pixels, notes = decoded(file_of(Image.fromarray(COLORS), "JPEG", exif=damaged))
    assert pixels.shape == COLORS.shape
    assert set(notes) <= {"read without their damaged EXIF data"}


# What is refused


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(kind, share, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as other code may have set it
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    whole = file_of(noise, kind)
    decode(ImageContent(whole), WHERE)
    message = refusal(whole[: int(len(whole) * share)])
    assert message.startswith(("cannot be decoded as an image: ", "is no image in one of the formats"))
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_photo_whose_end_is_zeros_is_refused_though_its_thumbnail_has_an_end():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    whole, thumbnail = file_of(noise, "JPEG"), file_of(noise.resize((8, 8)), "JPEG")
    photo = whole[:2] + b"\xff\xfe" + struct.pack(">H", 2 + len(thumbnail)) + thumbnail + whole[2:]
    decode(ImageContent(photo), WHERE)
    cut = int(len(photo) * 0.7)
    assert refusal(photo[:cut] + b"\0" * (len(photo) - cut)).startswith("cannot be decoded as an image: ")


def test_a_huge_image_is_refused_before_its_pixels_are_decoded():
    huge = png(30_000, 30_000, 8, 0, b"")  # there are no pixels that could be decoded
    assert refusal(huge) == (
        f"has 900,000,000 pixels; at most {MOST_PIXELS:,} are decoded, so that a small file cannot fill the memory. "
        "Make it smaller."
    )
    wide = png(10_000, 9_000, 8, 0, b"")
    assert refusal(wide).startswith(f"has 90,000,000 pixels; at most {MOST_PIXELS:,} are decoded")


def test_the_limit_holds_where_other_code_has_lifted_the_librarys(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert refusal(png(30_000, 30_000, 8, 0, b"")).startswith("has 30,000 x 30,000 pixels; at most 89,478,485")


def test_a_decompression_bomb_in_metadata_is_refused():
    bomb = zlib.compress(b"\0" * 80_000_000, 9)
    name = b"zTXt"
    data = b"Comment\0\0" + bomb
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    whole = png(8, 8, 8, 0, (b"\0" * 9) * 8)
    assert refusal(whole[:33] + chunk + whole[33:]).startswith("cannot be decoded as an image: ")


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_refused_with_its_number_of_frames(kind):
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (0, 100, 200)]
    message = refusal(file_of(frames[0], kind, save_all=True, append_images=frames[1:]))
    if kind == "TIFF":
        assert message == "has 3 pages. Save each as a file of its own."
    else:
        assert message == "is an animation of 3 frames. Save the frame that shows its class as an image."


def test_pictures_that_a_camera_appended_are_passed_over():
    first, second = Image.fromarray(COLORS), Image.new("RGB", (8, 8))
    pixels, notes = decoded(file_of(first, "MPO", save_all=True, append_images=[second]))
    assert pixels.shape == COLORS.shape
    assert notes == ("read without the pictures that the camera appended (MPO)",)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "is empty (0 bytes)."),
        (b"this is a text\nand no image", "WEBP, GIF, BMP, TIFF; it is text."),
        (b"<!DOCTYPE html><html>404</html>", "; it is a web page."),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "; it is SVG, a drawing without pixels."),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "; it is PostScript, which is a program and never run."),
        (b"\0\0\0\x18ftypheic" + b"\0" * 40, "; it is HEIC."),
        (b"P6\n8 8\n255\n" + b"\0" * 192, "is no image in one of the formats JPEG, PNG, WEBP, GIF, BMP, TIFF."),
        (file_of(Image.new("RGB", (1, 1))), "has 1 x 1 pixels; each side must have at least 4."),
        (file_of(Image.new("RGB", (4000, 8))), "has 4,000 x 8 pixels; one side may be at most 100 times as long"),
        (png(0, 8, 8, 0, b""), ""),
        (file_of(Image.new("I", (8, 8)), "TIFF"), "has pixels of 32 bits, whose range is unknown."),
        (file_of(rgb(3.5, kind="F"), "TIFF"), "has decimal pixels from 3.5 to 3.5; numbers from 0 to 1 are expected."),
        (file_of(rgb(float("nan"), kind="F"), "TIFF"), "has decimal pixels from nan to nan"),
        (np.zeros((2, 8), np.uint8), "has 8 x 2 pixels; each side must have at least 4."),
    ],
    ids=["empty", "text", "HTML", "SVG", "EPS", "HEIC", "PPM", "tiny", "slender", "no width", "32 bits", "too light",
         "no number", "small array"],
)  # fmt: skip
def test_what_is_no_usable_image_is_refused(source, message):
    assert message in refusal(source)


def test_one_wrong_byte_in_a_png_is_refused():
    whole = bytearray(file_of(Image.fromarray(COLORS)))
    whole[50] ^= 0xFF
    assert refusal(bytes(whole)).startswith("cannot be decoded as an image: ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_a_file_with_wrong_bytes_is_read_or_refused_in_one_sentence(kind):
    whole, draw = file_of(noise(0, 40), kind), random.Random(kind)
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 3, 20))):
            damaged[draw.randrange(draw.choice((40, len(whole))))] = draw.randrange(256)
        try:
            decoded(bytes(damaged))
        except DataError as error:
            assert str(error).startswith(f"{WHERE}: ")
            assert "\n" not in str(error)


def test_a_missing_file_is_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "1.png")


# Fingerprints


def noise(seed, size=64):
    small = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def record(picture, kind="PNG", **how):
    return record_of(decode(ImageContent(file_of(picture, kind, **how)), WHERE))


def test_the_content_hash_is_that_of_the_pixels_alone():
    one = record(noise(0))
    assert record(noise(0), "TIFF").content == one.content
    changed = noise(0)
    changed.putpixel((3, 3), (1, 2, 3))
    assert record(changed).content != one.content
    flat = Image.new("RGB", (8, 16)), Image.new("RGB", (16, 8))
    assert record(flat[0]).content != record(flat[1]).content


@pytest.mark.parametrize("seed", range(5))
def test_the_perceptual_hash_survives_compression_and_size(seed):
    def distance(one, other):
        return (one.perceptual ^ other.perceptual).bit_count()

    image = record(noise(seed, 400))
    assert distance(image, record(noise(seed, 400), "JPEG", quality=60)) <= 3
    assert distance(image, record(noise(seed, 400).resize((200, 200)))) <= 3
    assert distance(image, record(noise(seed + 100, 400))) > 10
