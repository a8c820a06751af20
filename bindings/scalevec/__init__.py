"""Find, trace and edit every normalization scale vector of a transformer, and measure what each of them does."""

from scalevec.errors import AddressError as AddressError
from scalevec.errors import DeviceError as DeviceError
from scalevec.errors import Error as Error
from scalevec.errors import FileError as FileError
from scalevec.errors import InvalidError as InvalidError
