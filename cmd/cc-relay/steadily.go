package main

import (
	"fmt"
	"runtime/debug"
	"time"

	"github.com/rs/zerolog"
)

// beginAgain is how long a part of the relay that failed rests: one that fails at once
// must not fill the log.
const beginAgain = time.Second

// steadily runs work to its end, and from its beginning again where it panics: what goes
// on beside the requests must not end them.
func steadily(log zerolog.Logger, part string, work func()) {
	for !endsWell(log, part, work) {
		time.Sleep(beginAgain)
	}
}

func endsWell(log zerolog.Logger, part string, work func()) (well bool) {
	defer func() {
		if p := recover(); p != nil { // its value may quote anything: its type and the place are enough
			log.Error().Str("part", part).Str("panic", fmt.Sprintf("%T", p)).Bytes("stack", debug.Stack()).Msg("a part of the relay failed and begins again")
		}
	}()
	work()
	return true
}
