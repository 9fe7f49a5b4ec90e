// Reads a matrix and multiplies a row of signs by it: iverilog -o row row.v && vvp row
module row;
    parameter ROWS = $rows, LENGTH = $length, WORD = $word;
    localparam WORDS = (LENGTH + WORD - 1) / WORD;
    reg [WORD-1:0] matrix [0:ROWS*WORDS-1];
    reg [WORD-1:0] signs [0:WORDS-1];
    reg [WORD-1:0] differing;
    reg [31:0] expected [0:ROWS-1];
    integer o, w, i, count, wrong;
    initial begin
        $$readmemh("$matrix", matrix);
        $$readmemh("row.signs.hex", signs);
        $$readmemh("row.products.hex", expected);
        wrong = 0;
        for (o = 0; o < ROWS; o = o + 1) begin
            count = 0;
            for (w = 0; w < WORDS; w = w + 1) begin
                differing = matrix[o * WORDS + w] ^ signs[w];
                for (i = 0; i < WORD; i = i + 1)
                    count = count + differing[i];
            end
            if (LENGTH - 2 * count !== $$signed(expected[o])) begin
                $$display("row %0d: %0d, expected %0d", o, LENGTH - 2 * count, $$signed(expected[o]));
                wrong = wrong + 1;
            end
        end
        if (wrong == 0) $$display("PASS: %0d products", ROWS);
        else $$display("FAIL: %0d of %0d products", wrong, ROWS);
        $$finish;
    end
endmodule
