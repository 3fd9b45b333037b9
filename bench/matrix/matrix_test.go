package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRowsOfATest(t *testing.T) {
	for test, want := range map[string][]string{
		"TestFault/P09":                             {"P09"},
		"TestFault/P09/S13_is_not_meant":            {"P09"},
		"TestFault":                                 nil,
		"TestSecurity_S03_S06_EachRoute":            {"S03", "S06"},
		"TestSecurity_S03_S06_EachRoute/GET_S99":    {"S03", "S06"},
		"TestFault/F08_in_two_providers":            {"F08"},
		"TestFaultFiles/F07_F09_ca_file_a_pipe":     {"F07", "F09"},
		"TestFaultsThatAnswerByThemselves/status_1": nil,
		"TestFault/AP09":                            nil,
		"TestFault/P091":                            nil,
	} {
		assert.Equal(t, want, rowsOf(test), test)
	}
}

// tested is the output of tests, one "ACTION TEST" each.
func tested(t *testing.T, events ...string) *results {
	t.Helper()
	var out bytes.Buffer
	for _, e := range events {
		action, test, _ := strings.Cut(e, " ")
		out.WriteString(`{"Action":"` + action + `","Package":"p","Test":"` + test + "\",\"Output\":\"said\\n\"}\n")
	}
	got, err := read(&out)
	require.NoError(t, err)
	return got
}

var few = []row{{"C01", "one", ""}, {"C02", "two", "it is early"}}

func TestMatrix(t *testing.T) {
	for name, tc := range map[string]struct {
		events []string
		want   string // states
		err    string // "" = none
	}{
		"all hold":              {[]string{"run TestFault", "run TestFault/C01", "pass TestFault/C01", "pass TestFault", "pass "}, "holds waits", ""},
		"no test":               {[]string{"pass TestOther/C01", "pass "}, "no test waits", "C01 one: no test"},
		"a test fails":          {[]string{"run TestFault/C01", "fail TestFault/C01", "fail TestFault", "fail "}, "fails waits", "C01 one: fails"},
		"a part fails":          {[]string{"run TestFault/C01/a", "fail TestFault/C01/a", "pass TestFault/C01/b", "fail TestFault/C01", "fail "}, "fails waits", "C01 one: fails"},
		"a test is skipped":     {[]string{"pass TestFault/C01/a", "skip TestFault/C01/b", "pass "}, "fails waits", "C01 one: fails"},
		"what waits fails":      {[]string{"pass TestFault/C01", "fail TestFault/C02", "fail "}, "holds fails", "C02 two: fails"},
		"a row nobody knows":    {[]string{"pass TestFault/C01", "pass TestFault/C99", "pass "}, "holds waits", "row C99, which the catalogue does not have: failed as a whole"},
		"a package ends before": {[]string{"pass TestFault/C01", "fail "}, "holds waits", "p: failed as a whole"},
	} {
		t.Run(name, func(t *testing.T) {
			m := join(few, tested(t, tc.events...))
			var states []string
			for _, l := range m.lines {
				states = append(states, l.state)
			}
			assert.Equal(t, tc.want, strings.Join(states, " "))
			if tc.err == "" {
				assert.NoError(t, m.err())
			} else {
				assert.EqualError(t, m.err(), tc.err)
			}
		})
	}
}

func TestPage(t *testing.T) {
	m := join(few, tested(t, "run TestFault/C01/a", "pass TestFault/C01/a", "pass TestFault/C01/b", "pass TestFault/C01", "pass TestFault/C02"))
	text := m.markdown()
	assert.Equal(t, "2 rows: 1 hold, 1 wait, 0 fail, 0 have no test.\n\n### Clients\n\n| row | | state | tests |\n| --- | --- | --- | ---: |\n"+
		"| C01 | one | holds | 2 |\n| C02 | two | waits: it is early | 1 |\n", text)
	page := filepath.Join(t.TempDir(), "page.md")
	require.NoError(t, os.WriteFile(page, []byte("head\n"+begin+"old\n"+end+"foot\n"), 0o600))
	for range 2 {
		require.NoError(t, insert(page, text))
		got, err := os.ReadFile(page)
		require.NoError(t, err)
		assert.Equal(t, "head\n"+begin+"\n"+text+"\n"+end+"foot\n", string(got))
	}
	require.NoError(t, os.WriteFile(page, []byte("head\n"+end+begin), 0o600))
	assert.ErrorContains(t, insert(page, text), "has no place for the matrix")
}

func TestRows(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range rows {
		assert.False(t, seen[r.id], r.id)
		seen[r.id] = true
		assert.Equal(t, []string{r.id}, rowsOf("TestFault/"+r.id))
		assert.NotEmpty(t, r.what, r.id)
		assert.NotContains(t, r.what+r.waits, "|", r.id)
		assert.Contains(t, groups, r.id[0])
	}
	assert.Len(t, rows, 153)
}
