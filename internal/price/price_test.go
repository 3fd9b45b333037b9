package price_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cc-relay/internal/price"
)

// The arithmetic is in micro-dollars: a token at n US$ per million tokens costs n
// micro-dollars. Its order: input, read, written for 5 minutes, for 1 hour, output.
func TestCostOfEveryModel(t *testing.T) {
	cases := []struct {
		model                            string
		input, read, write, long, output int
		want                             price.Nanodollars
	}{
		{"claude-fable-5-2", 11, 34_772, 1_717, 0, 2_686, 131_652_400},             // 11×8 + 34772×0.2 + 1717×10 + 2686×40 = 131652.4
		{"claude-mythos-5-2", 2, 19_747, 841, 18_059, 405, 317_519_400},            // 2×8 + 19747×0.2 + 841×10 + 18059×16 + 405×40 = 317519.4
		{"claude-fable-5-1", 12, 91_387, 337, 0, 2_098, 132_079_250},               // 12×10 + 91387×0.25 + 337×12.5 + 2098×50 = 132079.25
		{"claude-mythos-5-1", 7, 17_457, 89, 14_709, 1_732, 386_326_750},           // 7×10 + 17457×0.25 + 89×12.5 + 14709×20 + 1732×50 = 386326.75
		{"claude-fable-5", 3, 46_544, 471, 0, 2_277, 166_311_500},                  // 3×10 + 46544×1 + 471×12.5 + 2277×50 = 166311.5
		{"claude-mythos-5", 14, 18_873, 847, 19_028, 527, 436_510_500},             // 14×10 + 18873×1 + 847×12.5 + 19028×20 + 527×50 = 436510.5
		{"claude-opus-5-5", 8, 91_414, 3_981, 0, 273, 43_679_800},                  // 8×4 + 91414×0.2 + 3981×5 + 273×20 = 43679.8
		{"claude-opus-5", 19, 53_374, 407, 2_124, 925, 73_690_750},                 // 19×5 + 53374×0.5 + 407×6.25 + 2124×10 + 925×25 = 73690.75
		{"claude-opus-4-8", 2, 87_963, 3_616, 0, 565, 80_716_500},                  // 2×5 + 87963×0.5 + 3616×6.25 + 565×25 = 80716.5
		{"claude-opus-4-7", 10, 42_468, 148, 18_217, 502, 216_929_000},             // 10×5 + 42468×0.5 + 148×6.25 + 18217×10 + 502×25 = 216929
		{"claude-opus-4-6", 19, 55_433, 2_394, 0, 2_813, 113_099_000},              // 19×5 + 55433×0.5 + 2394×6.25 + 2813×25 = 113099
		{"claude-opus-4-5", 6, 21_753, 596, 19_217, 2_636, 272_701_500},            // 6×5 + 21753×0.5 + 596×6.25 + 19217×10 + 2636×25 = 272701.5
		{"claude-opus-4-5-20251101", 7, 63_810, 499, 0, 2_263, 91_633_750},         // 7×5 + 63810×0.5 + 499×6.25 + 2263×25 = 91633.75
		{"claude-sonnet-5-5", 23, 19_114, 578, 2_453, 2_555, 38_764_400},           // 23×2 + 19114×0.1 + 578×2.5 + 2453×4 + 2555×10 = 38764.4
		{"claude-sonnet-5", 7, 80_066, 2_886, 0, 2_197, 45_212_200},                // 7×2 + 80066×0.2 + 2886×2.5 + 2197×10 = 45212.2
		{"claude-sonnet-4-6", 14, 35_587, 477, 19_687, 1_876, 158_768_850},         // 14×3 + 35587×0.3 + 477×3.75 + 19687×6 + 1876×15 = 158768.85
		{"claude-sonnet-4-5", 12, 54_291, 1_117, 0, 756, 31_852_050},               // 12×3 + 54291×0.3 + 1117×3.75 + 756×15 = 31852.05
		{"claude-sonnet-4-5-20250929", 23, 30_997, 84, 19_322, 1_249, 144_350_100}, // 23×3 + 30997×0.3 + 84×3.75 + 19322×6 + 1249×15 = 144350.1
		{"claude-haiku-4-5", 17, 79_895, 3_684, 0, 1_426, 19_741_500},              // 17×1 + 79895×0.1 + 3684×1.25 + 1426×5 = 19741.5
		{"claude-haiku-4-5-20251001", 24, 44_414, 295, 2_898, 503, 13_145_150},     // 24×1 + 44414×0.1 + 295×1.25 + 2898×2 + 503×5 = 13145.15
		{"claude-opus-4-1", 17, 69_804, 775, 0, 1_421, 226_067_250},                // 17×15 + 69804×1.5 + 775×18.75 + 1421×75 = 226067.25
		{"claude-opus-4-1-20250805", 5, 47_044, 432, 1_784, 2_757, 339_036_000},    // 5×15 + 47044×1.5 + 432×18.75 + 1784×30 + 2757×75 = 339036
		{"claude-opus-4-0", 3, 88_148, 2_447, 0, 1_305, 276_023_250},               // 3×15 + 88148×1.5 + 2447×18.75 + 1305×75 = 276023.25
		{"claude-opus-4-20250514", 11, 37_949, 609, 16_775, 2_395, 751_382_250},    // 11×15 + 37949×1.5 + 609×18.75 + 16775×30 + 2395×75 = 751382.25
		{"claude-4-opus-20250514", 26, 74_795, 381, 0, 403, 149_951_250},           // 26×15 + 74795×1.5 + 381×18.75 + 403×75 = 149951.25
		{"claude-sonnet-4-0", 9, 46_070, 714, 2_629, 268, 36_319_500},              // 9×3 + 46070×0.3 + 714×3.75 + 2629×6 + 268×15 = 36319.5
		{"claude-sonnet-4-20250514", 24, 55_580, 2_750, 0, 2_387, 62_863_500},      // 24×3 + 55580×0.3 + 2750×3.75 + 2387×15 = 62863.5
		{"claude-4-sonnet-20250514", 22, 44_205, 292, 13_141, 2_758, 134_638_500},  // 22×3 + 44205×0.3 + 292×3.75 + 13141×6 + 2758×15 = 134638.5
		{"claude-3-5-haiku-latest", 12, 17_957, 3_952, 0, 1_911, 13_042_160},       // 12×0.8 + 17957×0.08 + 3952×1 + 1911×4 = 13042.16
		{"claude-3-5-haiku-20241022", 12, 26_013, 626, 4_336, 2_042, 17_822_240},   // 12×0.8 + 26013×0.08 + 626×1 + 4336×1.6 + 2042×4 = 17822.24
		{"claude-haiku-5-5", 12, 48_000, 2_310, 0, 640, 1_089_950},                 // 12×0.1 + 48000×0.01 + 2310×0.125 + 640×0.5 = 1089.95
		{"claude-haiku-5-5", 1, 0, 0, 0, 1, 600},                                   // 1×0.1 + 1×0.5 = 0.6
		{"claude-haiku-5-5", 7, 21_000, 333, 1_999, 85, 694_625},                   // 7×0.1 + 21000×0.01 + 333×0.125 + 1999×0.2 + 85×0.5 = 694.625
		{"claude-haiku-5-5", 100_000, 0, 0, 0, 10, 10_005_000},                     // 100000×0.1 + 10×0.5 = 10005
		{"claude-haiku-5-5", 100_001, 0, 0, 0, 10, 50_025_500},                     // 100001×0.5 + 10×2.5 = 50025.5
		{"claude-haiku-5-5", 1, 90_000, 9_999, 0, 10, 2_154_975},                   // 1×0.1 + 90000×0.01 + 9999×0.125 + 10×0.5 = 2154.975
		{"claude-haiku-5-5", 1, 90_000, 10_000, 0, 10, 10_775_500},                 // 1×0.5 + 90000×0.05 + 10000×0.625 + 10×2.5 = 10775.5
		{"claude-haiku-5-5", 0, 0, 0, 100_001, 0, 100_001_000},                     // 100001×1 = 100001
		{"claude-haiku-5-5", 0, 100_001, 0, 0, 0, 5_000_050},                       // 100001×0.05 = 5000.05
		{"claude-haiku-5-5", 13, 180_421, 5_120, 777, 12_001, 43_007_050},          // 13×0.5 + 180421×0.05 + 5120×0.625 + 777×1 + 12001×2.5 = 43007.05
		{"claude-haiku-5-5", 99_999, 0, 0, 0, 400_000, 209_999_900},                // 99999×0.1 + 400000×0.5 = 209999.9
		{"claude-opus-5-5", 0, 0, 0, 0, 0, 0},                                      // nothing
		{"claude-opus-5-5", 1, 0, 0, 0, 0, 4_000},                                  // 1×4 = 4
		{"claude-opus-5-5", 0, 1, 0, 0, 0, 200},                                    // 1×0.2 = 0.2
		{"claude-opus-5-5", 0, 0, 1, 0, 0, 5_000},                                  // 1×5 = 5
		{"claude-opus-5-5", 0, 0, 0, 1, 0, 8_000},                                  // 1×8 = 8
		{"claude-opus-5-5", 0, 0, 0, 0, 1, 20_000},                                 // 1×20 = 20
		{"claude-opus-5-5", 0, 0, 150_000, 0, 0, 750_000_000},                      // 150000×5 = 750000
		{"claude-opus-5-5", 0, 150_000, 0, 0, 0, 30_000_000},                       // 150000×0.2 = 30000
		{"claude-fable-5-2", 1, 999_000, 999, 0, 128_000, 5_329_798_000},           // 1×8 + 999000×0.2 + 999×10 + 128000×40 = 5329798
		{"claude-mythos-5", 1_000_000, 0, 0, 0, 128_000, 16_400_000_000},           // 1000000×10 + 128000×50 = 16400000
		{"claude-opus-4-8", 3, 700_123, 0, 41_001, 64_000, 2_360_086_500},          // 3×5 + 700123×0.5 + 41001×10 + 64000×25 = 2360086.5
		{"claude-sonnet-5-5", 11, 333_333, 33_333, 3_333, 7_777, 207_789_800},      // 11×2 + 333333×0.1 + 33333×2.5 + 3333×4 + 7777×10 = 207789.8
		{"claude-sonnet-4-6", 1, 1, 1, 1, 1, 28_050},                               // 1×3 + 1×0.3 + 1×3.75 + 1×6 + 1×15 = 28.05
		{"claude-haiku-4-5", 999, 199_001, 0, 0, 63_999, 340_894_100},              // 999×1 + 199001×0.1 + 63999×5 = 340894.1
		{"claude-fable-5-1", 3, 3, 3, 3, 3, 278_250},                               // 3×10 + 3×0.25 + 3×12.5 + 3×20 + 3×50 = 278.25
		{"claude-3-5-haiku-latest", 1, 1, 1, 1, 1, 7_480},                          // 1×0.8 + 1×0.08 + 1×1 + 1×1.6 + 1×4 = 7.48
		{"claude-opus-4-1", 1, 1, 1, 1, 1, 140_250},                                // 1×15 + 1×1.5 + 1×18.75 + 1×30 + 1×75 = 140.25
	}
	seen := map[string]bool{}
	for _, c := range cases {
		tokens := price.Tokens{Input: c.input, CacheRead: c.read, CacheWrite: c.write, CacheWriteLong: c.long, Output: c.output}
		var none *price.Table
		got, ok := none.Cost("anthropic", c.model, tokens)
		assert.True(t, ok, c.model)
		assert.Equal(t, c.want, got, "%s: %+v", c.model, tokens)
		seen[c.model] = true
	}
	for _, p := range price.BuiltIn().Prices {
		assert.True(t, seen[p.Model], "no case for %s", p.Model)
	}
}

func TestFieldsLeftOutFollowTheInput(t *testing.T) {
	tokens := price.Tokens{Input: 1, CacheRead: 1000, CacheWrite: 1000, CacheWriteLong: 1000, Output: 1}
	bare := price.Price{Model: "m", Input: 3, Output: 15}
	assert.Equal(t, price.Nanodollars(10_068_000), bare.Cost(tokens)) // 3 + 1000×0.3 + 1000×3.75 + 1000×6 + 15 = 10068

	free := bare
	free.CacheRead, free.CacheWrite, free.CacheWriteLong = new(0.0), new(0.0), new(0.0)
	assert.Equal(t, price.Nanodollars(18_000), free.Cost(tokens), "a written 0 is free")

	own := bare
	own.CacheRead, own.CacheWrite, own.CacheWriteLong = new(0.5), new(0.25), new(7.0)
	assert.Equal(t, price.Nanodollars(7_768_000), own.Cost(tokens)) // 3 + 1000×0.5 + 1000×0.25 + 1000×7 + 15 = 7768

	one := bare
	one.CacheRead = new(0.0)
	assert.Equal(t, price.Nanodollars(9_768_000), one.Cost(tokens)) // 3 + 0 + 1000×3.75 + 1000×6 + 15 = 9768
}

func TestCostIsRoundedOnce(t *testing.T) {
	for name, c := range map[string]struct {
		price, output float64
		tokens        price.Tokens
		want          price.Nanodollars
	}{
		"less than half a nano-dollar":    {0.0004, 0, price.Tokens{Input: 1}, 0},
		"half of one":                     {0.0005, 0, price.Tokens{Input: 1}, 1},
		"halves add up before":            {0.0005, 0.0005, price.Tokens{Input: 1, Output: 1}, 1},
		"many small ones":                 {0.0028, 0, price.Tokens{Input: 1_000_000}, 2_800_000},
		"the seventh decimal is rounded":  {0.1234567, 0, price.Tokens{Input: 1_000_000}, 123_457_000},
		"no binary fraction":              {0.1, 0.7, price.Tokens{Input: 3, Output: 3}, 2_400},
		"the most there is, exact":        {1_000_000, 0.001, price.Tokens{Input: 9_000, Output: 1}, 9_000_000_000_001},
		"more than an int64 of pico":      {75, 0, price.Tokens{Input: 1_000_000_000_000}, 75_000_000_000_000_000},
		"more than an int64 of nano":      {1_000_000, 1_000_000, price.Tokens{Input: math.MaxInt, Output: math.MaxInt}, math.MaxInt64},
		"negative counts are none":        {3, 15, price.Tokens{Input: -5, CacheRead: -5, CacheWrite: -5, CacheWriteLong: -5, Output: 2}, 30_000},
		"nothing used":                    {3, 15, price.Tokens{}, 0},
		"a price as such of a free model": {0, 0, price.Tokens{Input: 9, CacheRead: 9, CacheWrite: 9, CacheWriteLong: 9, Output: 9}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, price.Price{Model: "m", Input: c.price, Output: c.output}.Cost(c.tokens))
		})
	}
}

func TestSumsAreExactInAnyOrder(t *testing.T) {
	p := price.Price{Model: "m", Input: 0.1, Output: 0.3}
	var sum price.Nanodollars
	for range 1_000_000 {
		sum += p.Cost(price.Tokens{Input: 1, Output: 1})
	}
	assert.Equal(t, price.Nanodollars(400_000_000), sum) // 10^6 × 0.4 micro-dollars
	assert.Equal(t, 0.4, sum.Dollars())
}

func TestPromptCountsCachedTokens(t *testing.T) {
	assert.Equal(t, 1111, price.Tokens{Input: 1, CacheRead: 10, CacheWrite: 100, CacheWriteLong: 1000, Output: 5}.Prompt())
	assert.Equal(t, 10, price.Tokens{Input: -1, CacheRead: 10, CacheWrite: -1, CacheWriteLong: -7}.Prompt())
}

func TestCheck(t *testing.T) {
	good := price.Price{Model: "m", Input: 3, Output: 15}
	for name, c := range map[string]struct {
		change func(*price.Price)
		want   map[string]string // by field
	}{
		"good":           {func(*price.Price) {}, nil},
		"free":           {func(p *price.Price) { p.Input, p.Output, p.CacheRead = 0, 0, new(0.0) }, nil},
		"a pattern":      {func(p *price.Price) { p.Model, p.Provider = "*[1m]/x:0@a*", "*" }, nil},
		"bounds":         {func(p *price.Price) { p.Input, p.Output, p.PromptOver = 0.0001, 1_000_000, math.MaxInt }, nil},
		"empty model":    {func(p *price.Price) { p.Model = "" }, map[string]string{"model": "empty; write a model's name, or a part of it with *"}},
		"question mark":  {func(p *price.Price) { p.Model = "m?" }, map[string]string{"model": "only * stands for other characters; write it for ?"}},
		"space":          {func(p *price.Price) { p.Model = "m " }, map[string]string{"model": "not a model's name; write visible ASCII characters"}},
		"letter":         {func(p *price.Price) { p.Model = "mé" }, map[string]string{"model": "not a model's name; write visible ASCII characters"}},
		"negative size":  {func(p *price.Price) { p.PromptOver = -1 }, map[string]string{"prompt_over": "-1 is not a size; write a number of tokens, 0 for every prompt"}},
		"NaN":            {func(p *price.Price) { p.Input = math.NaN() }, map[string]string{"input": "no price; write US$ per million tokens, 0 if they are free"}},
		"negative":       {func(p *price.Price) { p.Output = -0.5 }, map[string]string{"output": "-0.5 is not a price; write US$ per million tokens, at most 1000000"}},
		"infinite":       {func(p *price.Price) { p.Output = math.Inf(1) }, map[string]string{"output": "+Inf is not a price; write US$ per million tokens, at most 1000000"}},
		"minus infinity": {func(p *price.Price) { p.Output = math.Inf(-1) }, map[string]string{"output": "-Inf is not a price; write US$ per million tokens, at most 1000000"}},
		"too high":       {func(p *price.Price) { p.CacheWrite = new(1_000_001.0) }, map[string]string{"cache_write": "1.000001e+06 is not a price; write US$ per million tokens, at most 1000000"}},
		"per token": {func(p *price.Price) { p.CacheRead = new(0.000003) },
			map[string]string{"cache_read": "3e-06 looks like a price per token; write US$ per million tokens, at least 0.0001"}},
		"everything": {func(p *price.Price) {
			*p = price.Price{PromptOver: -2, Input: -1, Output: -2, CacheWrite: new(-3.0), CacheWriteLong: new(-4.0), CacheRead: new(-5.0)}
		}, map[string]string{
			"model":          "empty; write a model's name, or a part of it with *",
			"prompt_over":    "-2 is not a size; write a number of tokens, 0 for every prompt",
			"input":          "-1 is not a price; write US$ per million tokens, at most 1000000",
			"output":         "-2 is not a price; write US$ per million tokens, at most 1000000",
			"cache_write":    "-3 is not a price; write US$ per million tokens, at most 1000000",
			"cache_write_1h": "-4 is not a price; write US$ per million tokens, at most 1000000",
			"cache_read":     "-5 is not a price; write US$ per million tokens, at most 1000000",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := good
			c.change(&p)
			got := map[string]string{}
			p.Check(func(field string, err error) { got[field] = err.Error() })
			if c.want == nil {
				assert.Empty(t, got)
			} else {
				assert.Equal(t, c.want, got)
			}
			_, err := price.NewTable([]price.Price{good, p})
			if c.want == nil {
				require.NoError(t, err)
				return
			}
			for field, text := range c.want {
				assert.ErrorContains(t, err, `price: prices[1] (model "`+p.Model+`"): `+field+": "+text)
			}
		})
	}
}
