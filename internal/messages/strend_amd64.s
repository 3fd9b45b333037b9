#include "textflag.h"

// func endInBlocks(p *byte, n int) (end int, escaped bool)
//
// Finds the first quote that no backslash escapes in n bytes from p, n a multiple of
// 64, beginning outside of an escape. Of each block of 64 bytes it makes two masks,
// one bit a byte: quotes and backslashes. Which bytes an odd run of backslashes comes
// before follows from the second by an addition: the carry runs through each run.
// Source: G. Langdale, D. Lemire, Parsing Gigabytes of JSON per Second, 2019, 3.1.1.
TEXT ·endInBlocks(SB), NOSPLIT, $0-25
	MOVQ p+0(FP), SI
	MOVQ n+8(FP), CX
	MOVQ $0x2222222222222222, AX // quotes
	VMOVQ AX, X0
	VPBROADCASTQ X0, Y0
	MOVQ $0x5c5c5c5c5c5c5c5c, AX // backslashes
	VMOVQ AX, X1
	VPBROADCASTQ X1, Y1
	MOVQ $0x5555555555555555, R9 // even places
	XORQ DI, DI                  // the block's place
	XORQ R8, R8                  // 1: the first byte of the block is escaped

loop:
	CMPQ DI, CX
	JGE  none
	VMOVDQU (SI)(DI*1), Y2
	VMOVDQU 32(SI)(DI*1), Y3
	VPCMPEQB Y0, Y2, Y4
	VPCMPEQB Y0, Y3, Y5
	VPMOVMSKB Y4, AX
	VPMOVMSKB Y5, BX
	SHLQ $32, BX
	ORQ  BX, AX  // quotes
	VPCMPEQB Y1, Y2, Y4
	VPCMPEQB Y1, Y3, Y5
	VPMOVMSKB Y4, DX
	VPMOVMSKB Y5, BX
	SHLQ $32, BX
	ORQ  BX, DX  // backslashes

	MOVQ R8, R10
	NOTQ R10
	ANDQ R10, DX // without one that is escaped itself
	LEAQ (R8)(DX*2), R11 // bytes after a backslash
	MOVQ R9, R12
	ORQ  R11, R12
	NOTQ R12
	ANDQ DX, R12 // first ones of runs, at odd places
	ADDQ DX, R12 // carried to behind their runs
	SBBQ R8, R8
	NEGQ R8      // out of the block: its next byte is escaped
	SHLQ $1, R12
	XORQ R9, R12
	ANDQ R11, R12 // escaped bytes
	NOTQ R12
	ANDQ R12, AX
	JNZ  found
	ADDQ $64, DI
	JMP  loop

found:
	BSFQ AX, AX
	ADDQ DI, AX
	MOVQ AX, end+16(FP)
	MOVB $0, escaped+24(FP)
	VZEROUPPER
	RET

none:
	MOVQ $-1, end+16(FP)
	MOVB R8, escaped+24(FP)
	VZEROUPPER
	RET
