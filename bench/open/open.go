package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

const (
	promptBytes     = 50_000
	mostPerStream   = 64 << 10
	opening         = 20 // at a time
	settle          = 5 * time.Second
	mostMissedOfAll = 0
)

// measureOpen opens streams and says what the relay's memory grows by for each.
func measureOpen(l *lab, o options) (bool, error) {
	if err := needFiles(2*o.streams + 200); err != nil {
		return false, err
	}
	length := o.time
	if length == 0 {
		length = 20 * time.Second
	}
	wire := request(modelOpen, promptBytes, true)
	if err := warmUp(l); err != nil {
		return false, err
	}
	before, _, err := l.memory()
	if err != nil {
		return false, err
	}
	var events, failed atomic.Int64
	var first atomic.Pointer[error]
	fail := func(err error) {
		failed.Add(1)
		first.CompareAndSwap(nil, &err)
	}
	began := time.Now()
	streams := make([]*stream, o.streams)
	var wg sync.WaitGroup
	for worker := range opening {
		wg.Go(func() {
			for i := worker; i < len(streams); i += opening {
				s, err := open(l.addr, wire)
				if err != nil {
					fail(err)
					continue
				}
				streams[i] = s
				go func() {
					for {
						if _, err := s.next(); err != nil {
							fail(err)
							return
						}
						events.Add(1)
					}
				}()
			}
		})
	}
	wg.Wait()
	fmt.Printf("  %d streams were opened in %.1f s\n", o.streams, time.Since(began).Seconds())
	time.Sleep(settle)
	was, cpu, measured := events.Load(), l.cpu(), time.Now()
	var plateau int64
	samples := 0
	for end := time.Now().Add(length); time.Now().Before(end); samples++ {
		time.Sleep(time.Second)
		now, _, err := l.memory()
		if err != nil {
			return false, err
		}
		plateau = max(plateau, now)
	}
	took := time.Since(measured).Seconds()
	perSecond := float64(events.Load()-was) / took
	used := (l.cpu() - cpu).Seconds() / took
	_, most, err := l.memory()
	if err != nil {
		return false, err
	}
	lost := failed.Load()
	if o.profile != "" {
		if err := l.profiles(o.profile); err != nil {
			return false, err
		}
	}
	if err := first.Load(); err != nil {
		fmt.Printf("  the first error: %v\n", *err)
	}
	fmt.Printf("  resident memory: %d MiB before, at most %d MiB at the plateau (%d samples), %d MiB ever; %.2f cores\n", before>>20, plateau>>20, samples, most>>20, used)
	ok := bar(lost == mostMissedOfAll, "errors: %d", lost)
	ok = bar(perSecond > 0.95*float64(o.streams), "events a second: %.0f of %d", perSecond, o.streams) && ok
	each := (plateau - before) / int64(o.streams)
	return bar(each <= mostPerStream, "memory for each stream: %.1f KiB, at most %d", float64(each)/1024, mostPerStream>>10) && ok, nil
}

// warmUp lets the relay make what it makes once.
func warmUp(l *lab) error {
	wire := request(modelPaced, promptBytes, true)
	var wg sync.WaitGroup
	var failed atomic.Pointer[error]
	for range 4 {
		wg.Go(func() {
			s, err := open(l.addr, wire)
			for text := "-"; err == nil && text != ""; {
				text, err = s.next()
			}
			if err != nil {
				failed.Store(&err)
				return
			}
			_ = s.conn.Close()
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}
