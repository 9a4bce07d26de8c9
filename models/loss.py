"""Ledger protocol under loss in Kafka (a log loses acknowledged tail entries once), sinks that restart, pipelined appends.
usage: python3 loss.py RULE EPOCH READERCHECK [transactions] [ledger|data|both]
 e.g. `loss.py count offset no` finds the violation in seconds; `loss.py pos nonce mono` finds none in 2.5 M states (not exhausted)
 RULE: count   = epoch + count (docs/design.md section 2, 'a sink's life')
       prevoff = count + checkpoint.prev offset == offset of the last one applied
       from    = count + checkpoint.from position == own progress position, prev offset AND prev epoch
       pos     = from + every record's position inside (from, upto], strictly increasing
 EPOCH: offset | nonce     (epoch = claim offset, or claim offset + random nonce)
 READERCHECK: no | mono    (a reader stops when an acknowledged offset is not above the previous one of that log)
"""
import sys
from collections import deque
RULE,EP,RC=sys.argv[1:4]
N=int(sys.argv[4]) if len(sys.argv)>4 else 4
K=2; LO=sys.argv[5] if len(sys.argv)>5 else 'both'
# reader: st(0 unborn,1 running,2 dead w/ flights,3 halted), epoch, next_tx, sent=((off,tx)...) since last cp, base(pos), prev(off,epoch,pos)|None, lastdataoff, lastledgeroff, flight(cp) , pend
R0=(0,None,0,(),0,None,-1,-1,None,None)
def init(): return ((R0,)*K,(),(),-1,0,(0,None,0,None,(),None),1)
def setr(rs,i,r): return rs[:i]+(r,)+rs[i+1:]
def scan(ledger,upto):
    ep,pos,prev=None,0,None
    for o,x in enumerate(ledger[:upto]):
        if x[0]=='claim': ep=(o,x[1]) if EP=='nonce' else (o,)
        elif x[1]==ep: pos,prev=x[3],(o,x[1],x[3])
    return pos,prev
def succ(s):
    rs,data,led,holder,conf,sink,loss=s
    for i,r in enumerate(rs):
        st,ep,nt,sent,base,prev,ld,ll,fl,pend=r
        if st==0 and (i==0 or rs[i-1][0]>=1):
            e=(len(led),i) if EP=='nonce' else (len(led),)
            nl=led+(('claim',i),); pos,prev=scan(nl,len(nl)-1)
            if conf>pos: yield 'slotmoved',(setr(rs,i,(3,)+R0[1:]),data,led,i,conf,sink,loss)
            else: yield f'claim{i}',(setr(rs,i,(1,e,pos,(),pos,prev,-1,len(nl)-1,None,None)),data,nl,i,conf,sink,loss)
            break
    for i,r in enumerate(rs):
        st,ep,nt,sent,base,prev,ld,ll,fl,pend=r
        if st==1:
            yield f'die{i}',(setr(rs,i,(2,ep,0,(),0,None,0,0,fl,None)),data,led,holder,conf,sink,loss)
            if nt<N:
                o=len(data); 
                if RC=='mono' and o<=ld: yield f'stop{i}',(setr(rs,i,(2,ep,0,(),0,None,0,0,fl,None)),data+((ep,nt+1),),led,holder,conf,sink,loss)
                else: yield f'send{i}',(setr(rs,i,(1,ep,nt+1,sent+((o,nt+1),),base,prev,o,ll,fl,pend)),data+((ep,nt+1),),led,holder,conf,sink,loss)
            if fl is None and sent:
                cp=('cp',ep,base,nt,min(o for o,_ in sent),max(o for o,_ in sent),len(sent),prev)
                yield f'cp{i}',(setr(rs,i,(1,ep,nt,(),nt,prev,ld,ll,cp,pend)),data,led,holder,conf,sink,loss)
            if pend is not None:
                o,u=pend
                cl=[k for k,x in enumerate(led[:o]) if x[0]=='claim']
                mine=cl and cl[-1]==ep[0] and (EP!='nonce' or led[cl[-1]][1]==ep[1])
                if o<len(led) and mine and led[o][0]=='cp' and led[o][1]==ep:
                    yield f'confirm{i}',(setr(rs,i,(1,ep,nt,sent,base,prev,ld,ll,fl,None)),data,led,holder,max(conf,u) if holder==i else conf,sink,loss)
                else: yield f'fenced{i}',(setr(rs,i,(2,ep,0,(),0,None,0,0,fl,None)),data,led,holder,conf,sink,loss)
        if fl is not None and st in(1,2):
            o=len(led)
            if st==2: yield f'zcp{i}',(setr(rs,i,(2,ep,0,(),0,None,0,0,None,None)),data,led+(fl,),holder,conf,sink,loss); yield f'zlost{i}',(setr(rs,i,(2,ep,0,(),0,None,0,0,None,None)),data,led,holder,conf,sink,loss)
            elif RC=='mono' and o<=ll: yield f'lstop{i}',(setr(rs,i,(2,ep,0,(),0,None,0,0,None,None)),data,led+(fl,),holder,conf,sink,loss)
            else: yield f'cpland{i}',(setr(rs,i,(1,ep,nt,sent,base,(o,ep,fl[3]),ld,o,None,(o,fl[3]))),data,led+(fl,),holder,conf,sink,loss)
    if loss:
        for k in (1,2):
            if LO!='data' and len(led)>=k: yield f'LOSE-ledger{k}',(rs,data,led[:-k],holder,conf,sink,loss-1)
            if LO!='ledger' and len(data)>=k: yield f'LOSE-data{k}',(rs,data[:-k],led,holder,conf,sink,loss-1)
    # sink: (next offset, reader epoch in force, position, last applied (off,epoch,pos), applied, halted)
    lp,se,pos,last,app,h=sink
    if h is None:
        if lp>len(led): yield 'sink-oor',(rs,data,led,holder,conf,(lp,se,pos,last,app,'gap'),loss)
        if lp<len(led):
            x=led[lp]
            if x[0]=='claim': yield 'sink-claim',(rs,data,led,holder,conf,(lp+1,(lp,x[1]) if EP=='nonce' else (lp,),pos,last,app,h),loss)
            elif x[1]!=se: yield 'sink-skip',(rs,data,led,holder,conf,(lp+1,se,pos,last,app,h),loss)
            else:
                _,e,frm,upto,a,b,n,prev=x; take=[t for ee,t in data[a:b+1] if ee==e]
                bad=len(take)!=n
                if RULE=='prevoff': bad|= (prev[0] if prev else None)!=(last[0] if last else None)
                if RULE in('from','pos'): bad|= frm!=pos or prev!=last
                if RULE=='pos': bad|= any(not(frm<t<=upto) for t in take) or any(p>=q for p,q in zip(take,take[1:]))
                if bad: yield 'sink-halt',(rs,data,led,holder,conf,(lp,se,pos,last,app,'gap'),loss)
                else: yield 'sink-apply',(rs,data,led,holder,conf,(lp+1,se,upto,(lp,e,upto),app+tuple(take),h),loss)
def check(s):
    app=s[5][4]
    if app!=tuple(range(1,len(app)+1)): return f'sink applied {app}, progress says {s[5][2]}'
    if s[6]==1 and s[5][5]: return 'halted without loss'
    if s[5][2]!=len(app): return f'progress {s[5][2]} but applied {app}'
def main():
    st=init(); seen={st:None}; dq=deque([st]); comp=0
    while dq:
        s=dq.popleft(); e=check(s)
        if e:
            path=[];x=s
            while seen[x]: x,a=seen[x]; path.append(a)
            print('VIOLATION',RULE,EP,RC,':',e,'|',len(seen),'states |',' '.join(reversed(path))); print('   ledger',s[2]); print('   data',s[1]); return
        if len(s[5][4])==N: comp+=1
        for a,t in succ(s):
            if t not in seen:
                seen[t]=(s,a); dq.append(t)
                if len(seen)>2500000: print('gave up, no violation',RULE,EP,RC,len(seen),'complete',comp); return
    print('ok',RULE,EP,RC,len(seen),'states, complete in',comp)
main()
