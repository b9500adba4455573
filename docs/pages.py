"""Hook of MkDocs: the site's pages are the repository's own files under their own paths, so a link works in both."""

from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("*.md", "docs/**/*.md", "recipes/*", "benchmarks/*.png", "notebooks/*", "LICENSE")


def on_files(files, config):
    """The theme's files, and instead of those below docs/ all pages and what they link to."""
    paths = sorted(path for pattern in PAGES for path in ROOT.glob(pattern))
    own = [
        File(path.relative_to(ROOT).as_posix(), str(ROOT), config.site_dir, config.use_directory_urls) for path in paths
    ]
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *own])
