"""Modbus servers by pymodbus and by libmodbus, as programs beside a test, all with the same values:

    holding 100  float32 61.5      102  uint16 1200 (the setpoint)     103  int32 -70000      105  string "PRESS-4"
    input     0  870               coils 0 to 1999: every other one is set                    discrete 0  set
    holding 110 and on: nothing, answered with exception 2 (by jsmodbus with what it finds)

    python -m tests.integration.modbus_counterpart pymodbus tcp|rtu|rtu+tcp|tls PORT|DEVICE [CERTIFICATE KEY]
    python -m tests.integration.modbus_counterpart libmodbus tcp|rtu PORT|DEVICE

READY when it listens. A number on stdin is written to the setpoint and answered by DONE.
"""

import asyncio
import ctypes
import ctypes.util
import ssl
import struct
import sys
import threading
from typing import Any

HOLDING = [
    *struct.unpack(">HH", struct.pack(">f", 61.5)),
    1_200,
    *struct.unpack(">HH", struct.pack(">i", -70_000)),
    *struct.unpack(">5H", b"PRESS-4\0\0\0"),
]
FIRST, SETPOINT = 100, 102
INPUT = 870
COILS = [at % 2 == 0 for at in range(2_000)]


async def pymodbus(kind: str, where: str, files: list[str]) -> None:
    from pymodbus.framer import FramerType
    from pymodbus.server import ModbusSerialServer, ModbusTcpServer, ModbusTlsServer
    from pymodbus.simulator import DataType, SimData, SimDevice

    device = SimDevice(
        id=1,
        simdata=(
            [SimData(0, values=COILS, datatype=DataType.BITS)],
            [SimData(0, values=[True] + [False] * 15, datatype=DataType.BITS)],
            [SimData(FIRST, values=HOLDING, datatype=DataType.REGISTERS)],
            [SimData(0, values=INPUT, datatype=DataType.REGISTERS)],
        ),
    )
    server: Any
    if kind == "rtu":
        server = ModbusSerialServer(device, framer=FramerType.RTU, port=where, baudrate=19_200)
    elif kind == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*files)
        server = ModbusTlsServer(device, address=("127.0.0.1", int(where)), sslctx=context)
    else:
        framer = FramerType.RTU if kind == "rtu+tcp" else FramerType.SOCKET
        server = ModbusTcpServer(device, framer=framer, address=("127.0.0.1", int(where)))
    await server.serve_forever(background=True)
    print("READY", flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        await server.async_setValues(1, 6, SETPOINT, [int(line)])
        print("DONE", flush=True)


class _Mapping(ctypes.Structure):
    _fields_ = (
        ("nb_bits", ctypes.c_int),
        ("start_bits", ctypes.c_int),
        ("nb_input_bits", ctypes.c_int),
        ("start_input_bits", ctypes.c_int),
        ("nb_input_registers", ctypes.c_int),
        ("start_input_registers", ctypes.c_int),
        ("nb_registers", ctypes.c_int),
        ("start_registers", ctypes.c_int),
        ("tab_bits", ctypes.POINTER(ctypes.c_uint8)),
        ("tab_input_bits", ctypes.POINTER(ctypes.c_uint8)),
        ("tab_input_registers", ctypes.POINTER(ctypes.c_uint16)),
        ("tab_registers", ctypes.POINTER(ctypes.c_uint16)),
    )


def libmodbus(kind: str, where: str) -> None:
    library: Any = ctypes.CDLL(ctypes.util.find_library("modbus") or "libmodbus.so.5")
    library.modbus_new_tcp.restype = library.modbus_new_rtu.restype = ctypes.c_void_p
    library.modbus_mapping_new_start_address.restype = ctypes.POINTER(_Mapping)
    mapping = library.modbus_mapping_new_start_address(0, len(COILS), 0, 1, FIRST, len(HOLDING), 0, 1)
    cells = mapping.contents
    for at, value in enumerate(HOLDING):
        cells.tab_registers[at] = value
    for at, on in enumerate(COILS):
        cells.tab_bits[at] = on
    cells.tab_input_registers[0], cells.tab_input_bits[0] = INPUT, 1

    def obey() -> None:
        for line in sys.stdin:
            cells.tab_registers[SETPOINT - FIRST] = int(line)
            print("DONE", flush=True)

    threading.Thread(target=obey, daemon=True).start()
    if kind == "tcp":
        context = ctypes.c_void_p(library.modbus_new_tcp(b"127.0.0.1", int(where)))
        listening = ctypes.c_int(library.modbus_tcp_listen(context, 1))
    else:
        context = ctypes.c_void_p(library.modbus_new_rtu(where.encode(), 19_200, ctypes.c_char(b"N"), 8, 1))
        library.modbus_set_slave(context, 1)
        library.modbus_connect(context)
    print("READY", flush=True)
    query = (ctypes.c_uint8 * 260)()
    while True:
        if kind == "tcp":
            library.modbus_tcp_accept(context, ctypes.byref(listening))
        while (length := library.modbus_receive(context, query)) >= 0 or kind == "rtu":
            if length > 0:
                library.modbus_reply(context, query, length, mapping)
        library.modbus_close(context)


if __name__ == "__main__":
    if sys.argv[1] == "pymodbus":
        asyncio.run(pymodbus(sys.argv[2], sys.argv[3], sys.argv[4:]))
    else:
        libmodbus(sys.argv[2], sys.argv[3])
