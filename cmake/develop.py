"""Puts a build folder's package on the path of this Python: `import scalevec` and the command `scalevec`."""

import pathlib
import sys
import sysconfig

package_root = pathlib.Path(sys.argv[1]).resolve()
site = pathlib.Path(sysconfig.get_paths()["purelib"])
command = pathlib.Path(sysconfig.get_paths()["scripts"]) / "scalevec"


def write(path: pathlib.Path, text: str, mode: int) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
        path.chmod(mode)


write(site / "scalevec-develop.pth", f"{package_root}\n", 0o644)
write(
    command,
    f"#!{sys.executable}\nimport sys\n\nfrom scalevec_command import main\n\nsys.exit(main())\n",
    0o755,
)
