package state_test

import (
	"os"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestTheSeedIsTheInstallations(t *testing.T) {
	d, other := newDir(t), newDir(t)
	first, err := d.Seed()
	require.NoError(t, err)
	again, err := open(t, d.Path()).Seed()
	require.NoError(t, err)
	elsewhere, err := other.Seed()
	require.NoError(t, err)
	assert.Equal(t, first, again)
	assert.NotEqual(t, first, elsewhere)
	assert.Equal(t, []string{"seed"}, names(t, d))
	info, err := os.Lstat(at(d, "seed"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
}

func TestADamagedSeedIsReplaced(t *testing.T) {
	d := newDir(t)
	first, err := d.Seed()
	require.NoError(t, err)
	for name, spoil := range map[string]func(){
		"empty":    func() { rewrite(t, at(d, "seed"), "") },
		"readable": func() { require.NoError(t, os.Chmod(at(d, "seed"), 0o644)) },
		"a link": func() {
			require.NoError(t, os.Rename(at(d, "seed"), at(d, "mine")))
			require.NoError(t, os.Symlink("mine", at(d, "seed")))
		},
	} {
		spoil()
		second, err := d.Seed()
		require.NoError(t, err, name)
		assert.NotEqual(t, first, second, name)
		third, err := d.Seed()
		require.NoError(t, err, name)
		assert.Equal(t, second, third, name)
		first = third
	}
}

func TestASeedThatCannotBeMade(t *testing.T) {
	d := newDir(t)
	require.NoError(t, os.RemoveAll(d.Path()))
	_, err := d.Seed()
	assert.ErrorIs(t, err, os.ErrNotExist)
	assert.ErrorContains(t, err, "state file "+at(d, "seed")+": ")
}

func TestASeedIsMadeOnce(t *testing.T) {
	for range 20 {
		path := newDir(t).Path()
		seeds := make([]uint64, 8)
		var wg sync.WaitGroup
		for i := range seeds {
			d := open(t, path)
			wg.Go(func() { seeds[i], _ = d.Seed() })
		}
		wg.Wait()
		for _, s := range seeds {
			require.Equal(t, seeds[0], s, "all of %v are one", seeds)
		}
		require.NotZero(t, seeds[0])
		require.Equal(t, []string{"seed"}, names(t, open(t, path)))
	}
}
