package main

import (
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const neighbours = 50

// measureStalled compares the event lag of streams with and without readers beside
// them that do not read.
func measureStalled(l *lab, o options) (bool, error) {
	if err := needFiles(2*o.stalled + 200); err != nil {
		return false, err
	}
	length := o.time
	if length == 0 {
		length = 6 * time.Second
	}
	if err := warmUp(l); err != nil {
		return false, err
	}
	var without, with []time.Duration
	for round := range o.rounds {
		for i := range 2 {
			stalled := 0
			if (round+i)%2 == 1 {
				stalled = o.stalled
			}
			p99, err := lagBeside(l, stalled, length)
			if err != nil {
				return false, err
			}
			if stalled > 0 {
				with = append(with, p99)
			} else {
				without = append(without, p99)
			}
		}
	}
	alone, beside := quantile(without, 0.5), quantile(with, 0.5)
	most := max(alone/10, 2*time.Millisecond)
	fmt.Printf("  event lag p99 of %d streams, by round: alone %v, beside %d stalled %v\n", neighbours, without, o.stalled, with)
	return bar(beside-alone <= most, "median p99: alone %v, beside %v: %v more, at most %v", alone, beside, beside-alone, most), nil
}

func lagBeside(l *lab, stalled int, length time.Duration) (time.Duration, error) {
	conns, err := stall(l, stalled)
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
		time.Sleep(time.Second)
	}()
	if err != nil {
		return 0, err
	}
	var mu sync.Mutex
	var lags []time.Duration
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	wire := request(modelPaced, 1000, true)
	end := time.Now().Add(length)
	for i := range neighbours {
		wg.Go(func() {
			time.Sleep(pace * time.Duration(i) / neighbours)
			own, err := follow(l, wire, end)
			if err != nil {
				failed.Store(&err)
			}
			mu.Lock()
			defer mu.Unlock()
			lags = append(lags, own...)
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return quantile(lags, 0.99), nil
}

// follow reads one stream after the other on one connection.
func follow(l *lab, wire []byte, end time.Time) (lags []time.Duration, err error) {
	s, err := open(l.addr, wire)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.conn.Close() }()
	for {
		text, err := s.next()
		switch {
		case err != nil:
			return nil, err
		case text != "":
			d, err := lag(text)
			if err != nil {
				return nil, err
			}
			lags = append(lags, d)
		case time.Now().After(end):
			return lags, nil
		default:
			if err := s.send(wire); err != nil {
				return nil, err
			}
		}
	}
}

// stall opens connections whose answers nobody reads, and waits until their buffers
// are full.
func stall(l *lab, n int) (conns []net.Conn, err error) {
	wire := request(modelFlood, 1000, true)
	for range n {
		conn, err := net.Dial("tcp", l.addr)
		if err != nil {
			return conns, err
		}
		conns = append(conns, conn)
		if err := conn.(*net.TCPConn).SetReadBuffer(4 << 10); err != nil {
			return conns, err
		}
		if _, err := conn.Write(wire); err != nil {
			return conns, err
		}
	}
	for n > 0 { // until the relay has nothing more to do for them
		was := l.cpu()
		time.Sleep(time.Second)
		if l.cpu()-was <= 50*time.Millisecond {
			break
		}
	}
	return conns, nil
}
